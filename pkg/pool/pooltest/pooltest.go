// Package pooltest makes pools for tests, on XFS in an image file, and records
// and interrupts the file operations of real ones. It is for tests only.
package pooltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/pool"
)

// DefaultImageBytes is large enough for a few small replicas.
const DefaultImageBytes = 512 << 20

// Mount mounts a new XFS of a size in bytes below the test's temporary
// directory, and returns the mount point. It is unmounted after the test.
func Mount(t testing.TB, sizeBytes int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices: /dev/loop-control is missing")
	}
	dir := t.TempDir()
	im, err := pool.OpenImage(context.Background(), pool.ImageOptions{
		Path: filepath.Join(dir, "pool.img"), MountPoint: filepath.Join(dir, "mnt"), SizeBytes: sizeBytes, Logger: Logger(t),
	})
	if err != nil {
		t.Fatalf("image-file pool: %v", err)
	}
	t.Cleanup(func() {
		if err := im.Close(context.Background()); err != nil {
			t.Errorf("close the image-file pool: %v", err)
		}
	})
	return filepath.Join(dir, "mnt")
}

// New makes a pool named "p" of DefaultImageBytes with a reserve of 1 MiB; it is
// closed after the test.
func New(t testing.TB) *pool.Pool {
	t.Helper()
	return Open(t, pool.Options{Name: "p", Path: Mount(t, DefaultImageBytes), ReserveBytes: 1 << 20, OverProvision: 10})
}

// Open opens a pool, and closes it after the test.
func Open(t testing.TB, o pool.Options) *pool.Pool {
	t.Helper()
	if o.Logger == nil {
		o.Logger = Logger(t)
	}
	p, err := pool.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("close the pool: %v", err)
		}
	})
	return p
}

// Logger drops everything: a failing test says enough by itself.
func Logger(testing.TB) *slog.Logger { return slog.New(slog.DiscardHandler) }

// ErrKilled is what a Recorder's operations return after its kill point.
var ErrKilled = errors.New("killed")

// Recorder is a pool.FS that does what pool.OS does, writes down each operation,
// and can stop at one of them for good, as a killed process does. Looking is not
// written down.
type Recorder struct {
	pool.OS

	Root string // cut off the paths that are written down

	mu    sync.Mutex
	ops   []string // guarded by mu
	limit int      // operations until the kill; 0 means none. Guarded by mu.
	done  int      // operations asked for. Guarded by mu.
}

// KillAt makes the n-th operation from now on (1 is the next) and all after it
// fail without being done; 0 lifts that. It forgets what was written down.
func (r *Recorder) KillAt(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit, r.done, r.ops = n, 0, nil
}

// Killed says whether the kill point was reached.
func (r *Recorder) Killed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.limit > 0 && r.done >= r.limit
}

// Take returns what was written down since the last call.
func (r *Recorder) Take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

func (r *Recorder) step(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	if r.limit > 0 && r.done >= r.limit {
		return ErrKilled
	}
	r.ops = append(r.ops, fmt.Sprintf(format, args...))
	return nil
}

func (r *Recorder) short(path string) string {
	if rel, err := filepath.Rel(r.Root, path); err == nil {
		return rel
	}
	return path
}

// Mkdir implements pool.FS.
func (r *Recorder) Mkdir(path string) error {
	if err := r.step("mkdir %s", r.short(path)); err != nil {
		return err
	}
	return pool.OS{}.Mkdir(path)
}

// Create implements pool.FS.
func (r *Recorder) Create(path string) (pool.File, error) {
	if err := r.step("create %s", r.short(path)); err != nil {
		return nil, err
	}
	f, err := pool.OS{}.Create(path)
	return &recordedFile{r: r, name: r.short(path), File: f}, err
}

// Edit implements pool.FS.
func (r *Recorder) Edit(path string) (pool.File, error) {
	if err := r.step("edit %s", r.short(path)); err != nil {
		return nil, err
	}
	f, err := pool.OS{}.Edit(path)
	return &recordedFile{r: r, name: r.short(path), File: f}, err
}

// Rename implements pool.FS.
func (r *Recorder) Rename(from, to string) error {
	if err := r.step("rename %s -> %s", r.short(from), r.short(to)); err != nil {
		return err
	}
	return pool.OS{}.Rename(from, to)
}

// RemoveAll implements pool.FS.
func (r *Recorder) RemoveAll(path string) error {
	if err := r.step("remove %s", r.short(path)); err != nil {
		return err
	}
	return pool.OS{}.RemoveAll(path)
}

// SyncDir implements pool.FS.
func (r *Recorder) SyncDir(path string) error {
	if err := r.step("syncdir %s", r.short(path)); err != nil {
		return err
	}
	return pool.OS{}.SyncDir(path)
}

type recordedFile struct {
	r    *Recorder
	name string
	pool.File
}

func (f *recordedFile) Write(p []byte) (int, error) {
	if err := f.r.step("write %s", f.name); err != nil {
		// A kill may leave half of what was written.
		n, werr := f.File.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return f.File.Write(p)
}

func (f *recordedFile) Truncate(size int64) error {
	if err := f.r.step("truncate %s %d", f.name, size); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *recordedFile) Sync() error {
	if err := f.r.step("sync %s", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *recordedFile) Close() error { return f.File.Close() } // a killed process closes its files too
