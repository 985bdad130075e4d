package replica

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// TryRead carries out a read if that needs no waiting for a disk, because the
// page cache has all of it. Otherwise it answers false, and the request is still
// the caller's, to submit where waiting does no harm.
func (s *Session) TryRead(io *block.IO) bool {
	img, ok := s.img.(*osImage)
	if !ok || io.Op != block.OpRead || io.Len == 0 || !s.gate.enter() {
		return false
	}
	defer s.gate.leaveLoop()
	if block.CheckRange(io, s.size.Load()) != nil || !img.readCached(io.Data, io.Off) {
		return false
	}
	io.DoneOn = io.Loop
	io.Done(io, nil)
	return true
}

// readCached reads what the page cache has; false unless that was everything.
// Then the content of p is undefined. An image with direct I/O has no cache.
func (f *osImage) readCached(p []byte, off int64) bool {
	if f.direct >= 0 {
		return false
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	// The offset takes two arguments, of which 64-bit kernels use the first.
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(f.cached), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	return errno == 0 && n == uintptr(len(p))
}
