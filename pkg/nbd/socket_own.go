package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownSocket is a connection without the standard library's poller, which would
// wake one of its threads for everything that is received or sent, before the one
// that it is for. A reader that waits does so in the kernel, and is woken itself.
// One goroutine reads and one writes at a time, as with socket.
type ownSocket struct {
	fd, wake int // the connection, and an eventfd that interrupts the reader

	// The reader's.
	drained      bool // the last read took all that there was
	readDeadline time.Time

	writeDeadline time.Time // the writer's

	mu     sync.Mutex
	closed bool // fd and wake are. Guarded by mu.
}

// errInterrupted is a read that was asked to look up.
var errInterrupted = errors.New("interrupted")

// takeOver moves the connection of a socket with a descriptor into an ownSocket.
// Nobody may be reading or writing.
func (s *socket) takeOver() error {
	if s.raw == nil {
		return nil
	}
	fd, dupErr := -1, error(nil)
	err := s.raw.Control(func(raw uintptr) { fd, dupErr = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return fmt.Errorf("nbd: duplicate the socket: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return errors.Join(fmt.Errorf("nbd: make an eventfd: %w", err), unix.Close(fd))
	}
	if err := s.Conn.Close(); err != nil {
		return errors.Join(err, unix.Close(fd), unix.Close(wake))
	}
	s.own = &ownSocket{fd: fd, wake: wake}
	return nil
}

// read reads once, and waits for something to read if need be: errInterrupted if
// interrupt was called meanwhile.
func (o *ownSocket) read(p []byte) (int, error) {
	for {
		if o.drained {
			if err := o.awaitInput(); err != nil {
				return 0, err
			}
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(o.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			o.drained = int(n) < len(p) // more would have come with it
			return int(n), nil
		case errno == unix.EAGAIN:
			o.drained = true
		case errno != unix.EINTR:
			return 0, os.NewSyscallError("recv", errno)
		}
	}
}

func (o *ownSocket) awaitInput() error {
	fds := [2]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLIN}, {Fd: int32(o.wake), Events: unix.POLLIN}}
	if err := poll(fds[:], o.readDeadline); err != nil {
		return err
	}
	if fds[1].Revents == 0 {
		return nil
	}
	var count [8]byte
	if _, err := unix.Read(o.wake, count[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
		return os.NewSyscallError("read", err)
	}
	return errInterrupted
}

// awaitOutput waits until the peer takes more.
func (o *ownSocket) awaitOutput() error {
	return poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLOUT}}, o.writeDeadline)
}

// poll waits for one of fds, or until the deadline, if it is not zero.
func poll(fds []unix.PollFd, deadline time.Time) error {
	for {
		var timeout *unix.Timespec
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			ts := unix.NsecToTimespec(left.Nanoseconds())
			timeout = &ts
		}
		switch n, err := unix.Ppoll(fds, timeout, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("ppoll", err)
		case n > 0:
			return nil
		}
	}
}

// interrupt has the reader look up.
func (o *ownSocket) interrupt() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	one := [8]byte{1, 1, 1, 1, 1, 1, 1} // any number
	// It fails only if the counter is full, which interrupts too.
	_, _ = unix.Write(o.wake, one[:])
}

// shutdown ends the connection: whoever reads or writes notices. The descriptor
// stays until close.
func (o *ownSocket) shutdown() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		_ = unix.Shutdown(o.fd, unix.SHUT_RDWR) // an error says that it is over already
	}
}

// close releases the descriptors; nobody reads or writes any more.
func (o *ownSocket) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		_, _ = unix.Close(o.fd), unix.Close(o.wake) // nothing is expected of them
	}
}
