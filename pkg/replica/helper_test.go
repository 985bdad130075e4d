package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	mib   = 1 << 20
	vol   = volume.ID("hv-0123456789abcdef0123456789abcdef")
	other = volume.ID("hv-fedcba9876543210fedcba9876543210")
)

// uid makes the n-th UID.
func uid(n int) volume.UID { return volume.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n)) }

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Pools == nil {
		o.Pools = Pools(pooltest.New(t))
	}
	o.Logger = pooltest.Logger(t)
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// restart makes a second server on the first one's pools, as a new process does.
func restart(t testing.TB, s *Server) *Server {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return newServer(t, Options{Pools: s.opts.Pools, LoopAttached: s.opts.LoopAttached})
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// expired is a context that has run out of time.
func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func create(t testing.TB, s *Server, u volume.UID, size int64) {
	t.Helper()
	if err := s.Create(deadline(t), CreateOptions{Volume: vol, UID: u, Pool: "p", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
}

func opening(u volume.UID, epoch volume.Epoch, session volume.Session) OpenOptions {
	return OpenOptions{Volume: vol, UID: u, Epoch: epoch, Session: session, Holder: "a"}
}

func open(t testing.TB, s *Server, o OpenOptions) *Session {
	t.Helper()
	ses, err := s.Open(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return ses
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func pattern(n int, seed byte) []byte {
	b := block.Alloc(n)
	const unit = 4096 // copied, for the race detector looks at every single byte
	for i := range min(n, unit) {
		b[i] = byte(i*7+i/251) ^ seed
	}
	for done := unit; done < n; done *= 2 {
		copy(b[done:], b[:done])
	}
	return b
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func replicaDir(s *Server, u volume.UID) string {
	return filepath.Join(s.opts.Pools[0].ReplicasDir(), string(u))
}

// faulty is an image whose calls can be held and failed.
type faulty struct {
	Image
	mu sync.Mutex
	// before is called before each operation and may block or fail it. Guarded by mu.
	before func(op string) error
}

func (f *faulty) step(op string) error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(op)
}

func (f *faulty) set(before func(op string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

func (f *faulty) ReadAt(p []byte, off int64) error {
	return errors.Join(f.step("read"), f.Image.ReadAt(p, off))
}

func (f *faulty) WriteAt(p []byte, off int64) error {
	if err := f.step("write"); err != nil {
		return err
	}
	return f.Image.WriteAt(p, off)
}

func (f *faulty) WriteDurable(p []byte, off int64) error {
	if err := f.step("write-durable"); err != nil {
		return err
	}
	return f.Image.WriteDurable(p, off)
}

func (f *faulty) Sync() error {
	if err := f.step("sync"); err != nil {
		return err
	}
	return f.Image.Sync()
}

func (f *faulty) Punch(off, n int64) error {
	if err := f.step("punch"); err != nil {
		return err
	}
	return f.Image.Punch(off, n)
}

func (f *faulty) WriteBack() error {
	if err := f.step("write-back"); err != nil {
		return err
	}
	return f.Image.WriteBack()
}

// withFaults has the server open faulty images; the last one is in the result.
func withFaults(s *Server) *faulty {
	f := &faulty{}
	s.files = imageFiles(func(path string, mode Mode) (Image, error) {
		img, err := openOSImage(path, mode)
		f.Image = img
		return f, err
	})
	return f
}

// imageFiles opens images in another way than the server would.
type imageFiles func(path string, mode Mode) (Image, error)

func (f imageFiles) OpenImage(path string, mode Mode) (Image, error) { return f(path, mode) }
func (imageFiles) OpenMap(path string) (MapFile, error)              { return openRegionFile(path) }

func stats(s *Server) (pool.Stats, error) { return s.opts.Pools[0].(*pool.Pool).Stats() }
