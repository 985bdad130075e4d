package replica

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Image is what a session asks of its file. Offsets and lengths lie within the
// file; all methods but Close may be called at the same time. Errors are the
// kernel's.
type Image interface {
	ReadAt(p []byte, off int64) error
	// WriteAt is volatile until Sync; WriteDurable is durable when it returns. With
	// errNotBegun it has done nothing, for want of a descriptor or memory.
	WriteAt(p []byte, off int64) error
	WriteDurable(p []byte, off int64) error
	// Sync makes all writes that have returned durable. The caller sees to it
	// that only one runs at a time.
	Sync() error
	// Punch gives the space back, Zero keeps or allocates it; both read as zeroes.
	Punch(off, n int64) error
	Zero(off, n int64) error
	// Allocated says whether a write there needs no new space, as far as can be
	// told quickly.
	Allocated(off, n int64) bool
	// Extents describes a range, or the first part of it.
	Extents(off, n int64) ([]block.Extent, error)
	// WriteBack has the kernel write dirty pages and waits; no cache is flushed.
	WriteBack() error
	Close() error
}

// Mode is how an image is opened.
type Mode uint8

// The modes.
const (
	Buffered Mode = iota // through the page cache
	Direct               // O_DIRECT where the request is aligned
	ReadOnly             // no lock, no writes
)

// osImage is an image on a real file system.
//
// The kernel reports a write-back error once per open file description. So every
// party that syncs has its own: cached (Sync, by turns), background (WriteBack)
// and the ones in durable, each used by one WriteDurable at a time.
//
// In direct mode, requests that are not aligned to block.Align go through the
// page cache: it does the read-modify-write under its own page lock, so that two
// neighbours in one block don't undo each other, and the kernel keeps it and
// direct I/O coherent (a direct read writes overlapping dirty pages first, a
// direct write drops them). Aligned requests with unaligned memory are copied.
type osImage struct {
	path               string
	cached, background int
	direct             int // -1 unless in direct mode
	durableFlags       int
	durable            chan int     // idle descriptors
	touched            atomic.Int64 // when the modification time was set last
}

// maxDurable bounds the idle descriptors that are kept for durable writes.
const maxDurable = 8

// openOSImage opens an image; ErrPrecondition when another process has locked it.
func openOSImage(path string, mode Mode) (Image, error) {
	f := &osImage{path: path, cached: -1, background: -1, direct: -1, durable: make(chan int, maxDurable)}
	if err := f.open(mode); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *osImage) open(mode Mode) (err error) {
	const flags = unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if mode == ReadOnly {
		f.cached, err = openFD(f.path, unix.O_RDONLY|flags)
		return err
	}
	if f.cached, err = openUntimed(f.path, unix.O_RDWR|flags); err != nil {
		return err
	}
	if err := lockImage(f.cached, f.path); err != nil {
		return err
	}
	f.durableFlags = unix.O_WRONLY | flags
	if mode == Buffered {
		f.background, err = openFD(f.path, unix.O_WRONLY|flags)
		return err
	}
	f.durableFlags |= unix.O_DIRECT
	f.direct, err = openUntimed(f.path, unix.O_RDWR|unix.O_DIRECT|flags)
	return err
}

func openFD(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// lockImage takes the image for this opening alone; the lock ends with the
// descriptor, so also with the process.
func lockImage(fd int, path string) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%s is locked, somebody uses it: %w", path, volume.ErrPrecondition)
		default:
			return fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// ReadAt implements Image.
func (f *osImage) ReadAt(p []byte, off int64) error {
	if f.direct < 0 || (off|int64(len(p)))%block.Align != 0 {
		return preadFull(f.cached, p, off)
	}
	if aligned(p, off) {
		return f.readDirect(p, off)
	}
	buf := bounce.Get().(*[]byte)
	defer bounce.Put(buf)
	b := (*buf)[:len(p)]
	if err := f.readDirect(b, off); err != nil {
		return err
	}
	copy(p, b)
	return nil
}

func (f *osImage) readDirect(p []byte, off int64) error { return preadFull(f.direct, p, off) }

// WriteAt implements Image.
func (f *osImage) WriteAt(p []byte, off int64) error {
	if f.direct < 0 || (off|int64(len(p)))%block.Align != 0 {
		return pwriteFull(f.cached, p, off, 0)
	}
	return writeAligned(f.direct, p, off, 0)
}

// WriteDurable implements Image.
func (f *osImage) WriteDurable(p []byte, off int64) error {
	fd, err := f.takeDurable()
	if err != nil {
		return err
	}
	defer f.putDurable(fd)
	switch {
	case f.direct < 0:
		return pwriteFull(fd, p, off, unix.RWF_DSYNC)
	case (off|int64(len(p)))%block.Align == 0:
		return writeAligned(fd, p, off, unix.RWF_DSYNC)
	}
	// Through the page cache, then synced by the description that is ours alone.
	if err := pwriteFull(f.cached, p, off, 0); err != nil {
		return err
	}
	return fdatasync(fd)
}

func (f *osImage) takeDurable() (int, error) {
	select {
	case fd := <-f.durable:
		return fd, nil
	default:
	}
	fd, err := openFD(f.path, f.durableFlags)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return -1, fmt.Errorf("%w: %w", errNotBegun, err)
	}
	return fd, err
}

var errNotBegun = errors.New("not begun")

func (f *osImage) putDurable(fd int) {
	select {
	case f.durable <- fd:
	default:
		_ = unix.Close(fd) // what it wrote is durable, or its error was returned
	}
}

// Sync implements Image.
func (f *osImage) Sync() error {
	f.touch()
	return fdatasync(f.cached)
}

// WriteBack implements Image.
func (f *osImage) WriteBack() error {
	f.touch()
	return retry(func() error {
		return unix.SyncFileRange(f.background, 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

// Punch implements Image.
func (f *osImage) Punch(off, n int64) error {
	return f.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Zero implements Image.
func (f *osImage) Zero(off, n int64) error {
	return f.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *osImage) allocate(mode uint32, off, n int64) error {
	if n == 0 {
		return nil
	}
	return retry(func() error { return unix.Fallocate(f.cached, mode, off, n) })
}

// Allocated implements Image. Space that was allocated but never written counts
// as missing: the kernel calls it a hole.
func (f *osImage) Allocated(off, n int64) bool {
	hole, err := unix.Seek(f.cached, off, unix.SEEK_HOLE)
	return n == 0 || (err == nil && hole >= off+n)
}

// maxExtents bounds one answer of Extents.
const maxExtents = 1024

// Extents implements Image.
func (f *osImage) Extents(off, n int64) ([]block.Extent, error) {
	var out []block.Extent
	for end := off + n; off < end && len(out) < maxExtents; {
		data, err := unix.Seek(f.cached, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data = end // only holes from here on
		} else if err != nil {
			return nil, fmt.Errorf("seek data: %w", err)
		}
		if data = min(data, end); data > off {
			out = append(out, block.Extent{Len: data - off, Hole: true})
			off = data
			continue
		}
		hole, err := unix.Seek(f.cached, off, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole: %w", err)
		}
		hole = min(hole, end)
		if hole <= off { // punched since the first question
			continue
		}
		out = append(out, block.Extent{Len: hole - off})
		off = hole
	}
	return out, nil
}

// Close implements Image.
func (f *osImage) Close() error {
	var errs []error
	shut := func(fd int) {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	for len(f.durable) > 0 {
		shut(<-f.durable)
	}
	shut(f.direct)
	shut(f.background)
	shut(f.cached) // the lock goes last
	return errors.Join(errs...)
}
