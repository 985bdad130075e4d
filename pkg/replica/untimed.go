package replica

import (
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A write to a file changes its modification time, about every 4 ms, which takes a
// transaction of the file system. A write that must not wait can't begin one: the
// kernel refuses it, and io_uring has a thread of its own make it; meanwhile that
// thread holds the inode, and the writes that follow end up there, too. At depth 32
// it was every fourth one.
//
// XFS leaves the times of files alone that were opened by handle (xfs_fsr and
// backups need that), so an image is opened so where it can be. The time then tells
// when the image was last synced: touch.

// handleRequest is struct xfs_fsop_handlereq of fs/xfs/libxfs/xfs_fs.h, with
// pointers of 64 bits. Other hosts refuse its size.
type handleRequest struct {
	fd     uint32
	path   uint64
	flags  uint32
	in     unsafe.Pointer
	inLen  uint32
	out    unsafe.Pointer
	outLen *uint32
}

const (
	xfsFDToHandle   = 106
	xfsOpenByHandle = 107
	// maxHandleBytes is more than any handle has; XFS's have 24.
	maxHandleBytes = 128
)

// untimed opens a file again that is open as fd, so that writes don't change its
// times. Path is where it is; its directory is needed to speak of handles.
func untimed(fd int, path string, flags int) (int, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	handle := make([]byte, maxHandleBytes)
	n := uint32(len(handle))
	at := unsafe.Pointer(unsafe.SliceData(handle))
	if _, err := handleCall(dir, xfsFDToHandle, &handleRequest{fd: uint32(fd), out: at, outLen: &n}); err != nil {
		return -1, err
	}
	syscall.ForkLock.RLock() // the kernel knows no close-on-exec here
	defer syscall.ForkLock.RUnlock()
	again, err := handleCall(dir, xfsOpenByHandle, &handleRequest{flags: uint32(flags), in: at, inLen: n})
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(again)
	return again, nil
}

func handleCall(dir int, number uintptr, r *handleRequest) (int, error) {
	const readWrite = 3 << 30 // _IOWR, on most architectures; others refuse it
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), readWrite|unsafe.Sizeof(*r)<<16|'X'<<8|number, uintptr(unsafe.Pointer(r)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// openUntimed is openFD, with times left alone where that can be had.
func openUntimed(path string, flags int) (int, error) {
	fd, err := openFD(path, flags)
	if err != nil {
		return -1, err
	}
	again, err := untimed(fd, path, flags)
	if err != nil {
		return fd, nil // another file system: writes are slower
	}
	_ = unix.Close(fd) // nothing was done with it
	return again, nil
}

// touchAfter is how old the modification time of a synced image may be.
const touchAfter = time.Second

// touch sets the modification time to now, if that was not done just before. It is
// for people and their backup programs; nothing depends on it.
func (f *osImage) touch() {
	now := time.Now().UnixNano()
	if last := f.touched.Load(); now-last < int64(touchAfter) || !f.touched.CompareAndSwap(last, now) {
		return
	}
	_, _, _ = unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.cached), 0, 0, 0, 0, 0)
}
