package replica

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// bounce holds aligned buffers for direct I/O from unaligned memory; there are as
// many as such requests at a time.
var bounce = sync.Pool{New: func() any { b := block.Alloc(block.MaxIOBytes); return &b }}

func aligned(p []byte, off int64) bool {
	return (uint64(off)|uint64(len(p))|uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))%block.Align == 0
}

// writeAligned writes aligned offsets and lengths, copying what lies unaligned
// in memory.
func writeAligned(fd int, p []byte, off int64, flags int) error {
	if aligned(p, off) {
		return pwriteFull(fd, p, off, flags)
	}
	buf := bounce.Get().(*[]byte)
	defer bounce.Put(buf)
	b := (*buf)[:copy(*buf, p)]
	return pwriteFull(fd, b, off, flags)
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func fdatasync(fd int) error { return retry(func() error { return unix.Fdatasync(fd) }) }

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("read at %d: the image ends there: %w (%w)", off, volume.ErrCorrupt, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// pwriteFull writes all of p; flags are pwritev2's.
func pwriteFull(fd int, p []byte, off int64, flags int) error {
	for len(p) > 0 {
		n, err := pwrite(fd, p, off, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("write at %d: %w", off, io.ErrShortWrite)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func pwrite(fd int, p []byte, off int64, flags int) (int, error) {
	if flags == 0 {
		return unix.Pwrite(fd, p, off)
	}
	return unix.Pwritev2(fd, [][]byte{p}, off, flags)
}
