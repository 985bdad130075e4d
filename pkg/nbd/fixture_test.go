package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// patience bounds every wait of a test; it is only reached by a failure.
const patience = 30 * time.Second

// pollEvery is the time between looks at a state that nothing tells of.
const pollEvery = 5 * time.Millisecond

// export is a Memory behind an export name. Closing one connection's use leaves
// the memory as it is, unless lastUse is set.
type export struct {
	*blocktest.Memory
	readOnly bool
	lastUse  bool
	closed   atomic.Int32
}

func (e *export) ReadOnly() bool { return e.readOnly }

func (e *export) Close() error {
	e.closed.Add(1)
	if e.lastUse {
		return e.Memory.Close()
	}
	return nil
}

// BlockStatus calls every 4 KiB block that is zero a hole. It describes at most
// a MiB at a time, which a caller must live with.
func (e *export) BlockStatus(off, n int64) ([]block.Extent, error) {
	data := make([]byte, min(n, block.MaxIOBytes))
	if err := block.ReadAt(e.Memory, data, off); err != nil {
		return nil, err
	}
	var out []block.Extent
	for len(data) > 0 {
		k := min(len(data), block.Align-int(off%block.Align))
		hole := len(bytes.TrimLeft(data[:k], "\x00")) == 0
		out = append(out, block.Extent{Len: int64(k), Hole: hole})
		data, off = data[k:], off+int64(k)
	}
	return out, nil
}

// backend serves what is put into it.
type backend struct {
	mu      sync.Mutex
	exports map[string]Export
	errs    map[string]error
	opened  int
}

func (b *backend) Open(_ context.Context, name string) (Export, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	if err := b.errs[name]; err != nil {
		return nil, err
	}
	if e := b.exports[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("export %q: %w", name, volume.ErrNotFound)
}

func (b *backend) List() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for n := range b.exports {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// testLog sends log lines to the test.
type testLog struct {
	t  testing.TB
	mu sync.Mutex
	on bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.on {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func newTestLogger(t testing.TB) *slog.Logger {
	l := &testLog{t: t, on: true}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.on = false
	})
	return slog.New(slog.NewTextHandler(l, nil))
}

// running is a server on a loopback port.
type running struct {
	*Server
	addr string
	stop func() // ends it and waits; may be called again
}

// serve starts a server that ends with the test.
func serve(t testing.TB, opts ServerOptions) *running {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = newTestLogger(t)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := NewServer(opts)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			buf := make([]byte, 1<<20)
			t.Errorf("Serve did not end:\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
	t.Cleanup(stop)
	return &running{Server: s, addr: l.Addr().String(), stop: stop}
}

// one serves a single export, called "x".
func one(t testing.TB, e Export) *running {
	t.Helper()
	return serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": e}}})
}

// dial connects a client that is closed with the test.
func dial(t testing.TB, opts DialOptions) *Client {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = newTestLogger(t)
	}
	if opts.Name == "" {
		opts.Name = "x"
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// answers collects the results of requests that run at the same time.
type answers struct {
	ch chan error
	n  int
}

func newAnswers(limit int) *answers { return &answers{ch: make(chan error, limit)} }

func (a *answers) submit(d block.Device, io *block.IO) {
	a.n++
	io.Done = func(_ *block.IO, err error) { a.ch <- err }
	d.Submit(io)
}

// wait returns the errors of all requests, nil ones too, in order of arrival.
func (a *answers) wait(t testing.TB) []error {
	t.Helper()
	var out []error
	for ; a.n > 0; a.n-- {
		select {
		case err := <-a.ch:
			out = append(out, err)
		case <-time.After(patience):
			t.Fatalf("%d requests are still unanswered", a.n)
		}
	}
	return out
}

func wantAll(t testing.TB, errs []error, want error) {
	t.Helper()
	for _, err := range errs {
		if !errors.Is(err, want) {
			t.Errorf("answered %v, want %v", err, want)
		}
	}
}

// noneLeft fails the test if goroutines of this package outlive it. It must be
// called before anything is started.
func noneLeft(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			buf := make([]byte, 1<<20)
			stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
			left := slices.DeleteFunc(stacks[1:], func(s string) bool {
				return !strings.Contains(s, "holdfast/pkg/nbd.") || strings.Contains(s, "testing.tRunner")
			})
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("goroutines are left:\n%s", strings.Join(left, "\n\n"))
				return
			}
			time.Sleep(pollEvery)
		}
	})
}

func fill(p []byte, seed byte) []byte {
	for i := range p {
		p[i] = seed + byte(i*7>>3) | 1
	}
	return p
}
