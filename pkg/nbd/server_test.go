package nbd

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// blocking is a device whose Submit waits, as a disk's does, until open is
// called for the operation.
type blocking struct {
	memory
	op      block.Op
	entered chan *block.IO
	release chan struct{}
	once    sync.Once
}

func newBlocking(op block.Op) *blocking {
	return &blocking{
		memory: memory{data: make([]byte, 4<<20)}, op: op,
		entered: make(chan *block.IO, 1000), release: make(chan struct{}),
	}
}

func (d *blocking) open() { d.once.Do(func() { close(d.release) }) }

func (d *blocking) Submit(io *block.IO) {
	if io.Op == d.op {
		d.entered <- io
		<-d.release
	}
	d.memory.Submit(io)
}

// Close lets the requests in Submit go on, as the contract of Device asks.
func (d *blocking) Close() error {
	d.open()
	return nil
}

func (d *blocking) waitEntered(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		select {
		case <-d.entered:
		case <-time.After(patience):
			t.Fatalf("%d of %d requests reached the device", i, n)
		}
	}
}

// TestFlushHoldsUpNothing: writes behind a flush are answered while it runs,
// and so are reads behind a trim.
func TestFlushHoldsUpNothing(t *testing.T) {
	for _, op := range []block.Op{block.OpFlush, block.OpTrim, block.OpWriteZeroes} {
		t.Run(op.String(), func(t *testing.T) {
			noneLeft(t)
			d := newBlocking(op)
			c := dial(t, DialOptions{Addr: one(t, d).addr})
			slow := newAnswers(1)
			io := &block.IO{Op: op}
			if op != block.OpFlush {
				io.Len = 4096
			}
			slow.submit(c, io)
			d.waitEntered(t, 1)
			p := make([]byte, 4096)
			for range 100 {
				if err := block.WriteAt(c, p, 8192); err != nil {
					t.Fatal(err)
				}
				if err := block.ReadAt(c, p, 8192); err != nil {
					t.Fatal(err)
				}
			}
			d.open()
			wantAll(t, slow.wait(t), nil)
		})
	}
}

// TestSlowRequestsOverlap: once a device was seen to be slow, its requests run
// at the same time, up to the number of workers.
func TestSlowRequestsOverlap(t *testing.T) {
	noneLeft(t)
	d := newBlocking(block.OpWrite)
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": d}}, Workers: 8})
	c := dial(t, DialOptions{Addr: s.addr})
	a := newAnswers(100)
	write := func() {
		a.submit(c, &block.IO{Op: block.OpWrite, FUA: true, Off: int64(a.n) * 4096, Len: 4096, Data: make([]byte, 4096)})
	}
	for range 8 {
		write()
	}
	d.waitEntered(t, 8)
	for range 20 {
		write() // they wait for a worker
	}
	d.open()
	wantAll(t, a.wait(t), nil)
}

// TestSlowDeviceIsNoticed: plain reads of a device that takes its time end up
// in workers, so that they overlap.
func TestSlowDeviceIsNoticed(t *testing.T) {
	noneLeft(t)
	d := newBlocking(block.OpRead)
	c := dial(t, DialOptions{Addr: one(t, d).addr})
	first := newAnswers(1)
	first.submit(c, &block.IO{Op: block.OpRead, Len: 4096, Data: make([]byte, 4096)})
	d.waitEntered(t, 1) // the reader itself is in the device
	time.Sleep(quickTime)
	d.release <- struct{}{}
	wantAll(t, first.wait(t), nil)
	a := newAnswers(slowStep)
	for range slowStep {
		a.submit(c, &block.IO{Op: block.OpRead, Len: 4096, Data: make([]byte, 4096)})
	}
	d.waitEntered(t, slowStep)
	d.open()
	wantAll(t, a.wait(t), nil)
}

func TestOutOfOrderReplies(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	x.Hold(func(io *block.IO) bool { return io.Op == block.OpRead })
	r := rawOpen(t, one(t, x).addr)
	for i := range uint64(3) {
		r.request(request{typ: cmdRead, cookie: i, length: 512}, nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.WaitHeld(ctx, 3); err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); ; i-- {
		x.Release(int(i))
		if got := r.simple(); got != (simple{0, i}) {
			t.Fatalf("answered %v, want cookie %d", got, i)
		}
		r.take(512)
		if i == 0 {
			break
		}
	}
}

// TestLimits: a client that sends without end makes the device hold no more
// than the limits allow.
func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		name  string
		opts  ServerOptions
		size  int
		limit int
	}{
		{"count", ServerOptions{MaxInflight: 10}, 4096, 10},
		{"bytes", ServerOptions{MaxInflightBytes: 2 << 20}, 512 << 10, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
			x.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite })
			tc.opts.Backend = &backend{exports: map[string]Export{"x": x}}
			s := serve(t, tc.opts)
			c := dial(t, DialOptions{Addr: s.addr})
			a := newAnswers(64)
			for range 64 {
				a.submit(c, &block.IO{Op: block.OpWrite, Len: int64(tc.size), Data: make([]byte, tc.size)})
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			for range 64 - tc.limit { // one out, one in
				if err := x.WaitHeld(ctx, tc.limit); err != nil {
					t.Fatal(err)
				}
				short, done := context.WithTimeout(ctx, time.Millisecond)
				if err := x.WaitHeld(short, tc.limit+1); err == nil {
					t.Fatalf("more than %d requests in the device", tc.limit)
				}
				done()
				x.Release(0)
			}
			x.Hold(nil)
			x.Release(-1)
			wantAll(t, a.wait(t), nil)
		})
	}
}

// TestServeEnds: when the context ends, whatever state the connections are in.
func TestServeEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, s *running, x *export)
	}{
		{"no connection", func(*testing.T, *running, *export) {}},
		{"in the handshake", func(t *testing.T, s *running, _ *export) { rawDial(t, s.addr) }},
		{"idle", func(t *testing.T, s *running, _ *export) { rawOpen(t, s.addr).alive() }},
		{"half a request", func(t *testing.T, s *running, _ *export) { rawOpen(t, s.addr).put(make([]byte, 9)) }},
		{"requests that the device never answers", func(t *testing.T, s *running, x *export) {
			r := rawOpen(t, s.addr)
			x.Hold(func(*block.IO) bool { return true })
			for range 500 { // more than are allowed in flight
				r.request(request{typ: cmdRead, length: 512}, nil)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := x.WaitHeld(ctx, DefaultMaxInflight); err != nil {
				t.Fatal(err)
			}
		}},
		{"a disconnect that waits for the device", func(t *testing.T, s *running, x *export) {
			r := rawOpen(t, s.addr)
			x.Hold(func(*block.IO) bool { return true })
			r.request(request{typ: cmdRead, length: 512}, nil)
			r.request(request{typ: cmdDisconnect}, nil)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
			s := one(t, x)
			tc.run(t, s, x)
			s.stop()
		})
	}
}

// TestServeEndsWithBusyWorkers: even if every worker is in the device and the
// reader waits for one.
func TestServeEndsWithBusyWorkers(t *testing.T) {
	noneLeft(t)
	d := newBlocking(block.OpFlush)
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": d}}, Workers: 2})
	r := rawOpen(t, s.addr)
	for range 5 {
		r.request(request{typ: cmdFlush}, nil)
	}
	d.waitEntered(t, 2)
	s.stop()
}

// TestSlowPeer: a client that reads none of its replies is cut off.
func TestSlowPeer(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}, WriteTimeout: 100 * time.Millisecond})
	r := rawOpen(t, s.addr)
	b := make([]byte, requestBytes)
	request{typ: cmdRead, length: maxPayload}.put(b)
	for { // until the server stops reading, and then hangs up
		if _, err := r.Write(b); err != nil {
			break
		}
	}
	deadline := time.Now().Add(patience)
	for x.closed.Load() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the connection is still served")
		}
		time.Sleep(pollEvery)
	}
}

// TestRefusalsAreBounded: refused requests are bounded like others, when nobody
// reads the refusals.
func TestRefusalsAreBounded(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}, WriteTimeout: 200 * time.Millisecond})
	r := rawOpen(t, s.addr)
	var batch []byte
	for range 1000 {
		b := make([]byte, requestBytes)
		request{typ: 99}.put(b)
		batch = append(batch, b...)
	}
	for sent := 0; ; sent += len(batch) {
		if _, err := r.Write(batch); err != nil {
			break
		}
		if sent > 1<<30 {
			t.Fatal("the server goes on reading while nobody reads its replies")
		}
	}
}

func TestMaxConnections(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}, MaxConnections: 2})
	a, b := rawOpen(t, s.addr), rawOpen(t, s.addr)
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	(&raw{t, c}).closed()
	a.alive()
	b.alive()
	_ = a.Close()
	deadline := time.Now().Add(patience)
	for { // the slot comes free
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		n, _ := c.Read(make([]byte, 18))
		_ = c.Close()
		if n == 18 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no connection after one was closed")
		}
		time.Sleep(pollEvery)
	}
}

// TestListenerBreaks: Serve tells it, and leaves nothing.
func TestListenerBreaks(t *testing.T) {
	noneLeft(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	s := NewServer(ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), l) }()
	rawOpen(t, l.Addr().String()).alive()
	_ = l.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Serve goes on")
	}
}

// statusFails is an export whose block status does not work.
type statusFails struct {
	*export
	err error
}

func (s statusFails) BlockStatus(int64, int64) ([]block.Extent, error) { return nil, s.err }

func TestBlockStatusFails(t *testing.T) {
	noneLeft(t)
	for _, tc := range []struct {
		name     string
		in, want error
	}{
		{"disk error", volume.ErrFailed, volume.ErrFailed},
		{"fenced", volume.ErrFenced, volume.ErrFenced},
		{"an empty answer", nil, volume.ErrFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := statusFails{&export{Memory: blocktest.NewMemory(4 << 20)}, tc.in}
			c := dial(t, DialOptions{Addr: one(t, x).addr, BlockStatus: true})
			if _, err := c.BlockStatus(0, 4096); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if err := block.Flush(c); err != nil {
				t.Errorf("the connection is of no use any more: %v", err)
			}
		})
	}
}

// TestErrorsOverTheWire: what a device says, and what the client hears.
func TestErrorsOverTheWire(t *testing.T) {
	noneLeft(t)
	for _, tc := range []struct {
		name     string
		in, want error
	}{
		{"pool full", volume.ErrNoSpace, volume.ErrNoSpace},
		{"fenced", volume.ErrFenced, volume.ErrFenced},
		{"session closed", volume.ErrClosed, volume.ErrFenced},
		{"disk error", volume.ErrFailed, volume.ErrFailed},
		{"no memory", volume.ErrUnavailable, volume.ErrUnavailable},
		{"anything else", errors.New("surprise"), volume.ErrFailed},
		{"unsupported", volume.ErrUnsupported, volume.ErrFailed},
	} {
		for _, structured := range []string{"simple", "structured"} {
			t.Run(tc.name+"/"+structured, func(t *testing.T) {
				x := &export{Memory: blocktest.NewMemory(4 << 20)}
				x.Fail(func(*block.IO) error { return tc.in })
				c := dial(t, DialOptions{Addr: one(t, x).addr, BlockStatus: structured == "structured"})
				p := make([]byte, 4096)
				for _, err := range []error{
					block.ReadAt(c, p, 0), block.WriteAt(c, p, 0), block.Flush(c), block.Do(c, &block.IO{Op: block.OpTrim, Len: 4096}),
					block.Do(c, &block.IO{Op: block.OpRead}), // an empty one asks whether the device still answers
				} {
					if !errors.Is(err, tc.want) {
						t.Errorf("got %v, want %v", err, tc.want)
					}
				}
				x.Fail(nil)
				if err := block.WriteAt(c, p, 0); err != nil {
					t.Errorf("the connection is of no use any more: %v", err)
				}
			})
		}
	}
}
