package export

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ring is an io_uring(7), as small as serving FUSE needs it: reads and writes
// of whole buffers, submitted and awaited by one thread. Its memory is shared
// with the kernel:
//
//	submission ring: head, tail, mask, ... and an array of indices, which here
//	  always names the entry of its own position
//	submission entries of 64 bytes: 0 opcode u8 | 4 descriptor i32 |
//	  8 offset u64 | 16 address u64 | 24 length or flags of a poll u32 |
//	  28 events of a poll u32 | 32 user data u64
//	completion ring: head, tail, mask, ... and entries of 16 bytes:
//	  0 user data u64 | 8 result i32 (negative errno) | 12 flags u32
//
// Only the thread that made a ring uses it.
type ring struct {
	fd         int
	rings, sqe []byte // the mappings

	sqHead, sqTail, cqHead, cqTail *uint32 // shared
	sqMask, cqMask                 uint32
	cqes                           []byte

	enterFlags uintptr

	tail    uint32 // of submissions, ours
	pending uint32 // submissions that the kernel has not been told of
}

// From include/uapi/linux/io_uring.h.
const (
	uringOpPoll    = 6
	uringOpCancel  = 14
	uringOpRead    = 22
	uringOpWrite   = 23
	uringOpReceive = 27

	uringPollMulti = 1 << 0 // Linux 5.13
	uringCQEMore   = 1 << 1

	uringEnterGetEvents = 1 << 0
	uringEnterNoIowait  = 1 << 7
	uringFeatSingleMmap = 1 << 0
	uringFeatNoIowait   = 1 << 17 // Linux 6.15

	uringSetupCoopTaskrun  = 1 << 8  // Linux 5.19
	uringSetupSingleIssuer = 1 << 12 // Linux 6.0
	uringSetupDeferTaskrun = 1 << 13 // Linux 6.1

	uringParamsBytes = 120
	uringOffSQEs     = 0x10000000

	sqeBytes = 64
	cqeBytes = 16
)

// newRing makes a ring for entries submissions at a time and twice as many
// completions. It answers ErrUnsupported where io_uring is missing or forbidden.
func newRing(entries uint32) (*ring, error) {
	var params []byte
	var fd uintptr
	errno := unix.EINVAL
	// Newer kernels let completions wait until we ask for them, which saves
	// interrupting this thread; older ones don't know the flags.
	for _, flags := range []uint32{uringSetupSingleIssuer | uringSetupDeferTaskrun, uringSetupCoopTaskrun, 0} {
		params = make([]byte, uringParamsBytes)
		host.PutUint32(params[8:], flags)
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&params[0])), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, fmt.Errorf("io_uring: %w: %w", errno, volume.ErrUnsupported)
	}
	unix.CloseOnExec(int(fd))
	r := &ring{fd: int(fd)}
	if err := r.mapMemory(params); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// mapMemory maps the rings as the kernel's io_uring_params say.
func (r *ring) mapMemory(params []byte) (err error) {
	u32 := func(at int) uint32 { return host.Uint32(params[at:]) }
	if u32(20)&uringFeatSingleMmap == 0 {
		return fmt.Errorf("io_uring with features %#x: %w", u32(20), volume.ErrUnsupported)
	}
	r.enterFlags = uringEnterGetEvents
	if u32(20)&uringFeatNoIowait != 0 {
		// A thread that waits for requests is idle; it should not look as if it
		// waited for a disk.
		r.enterFlags |= uringEnterNoIowait
	}
	sqEntries, cqEntries := u32(0), u32(4)
	sqArray, cqes := u32(40+24), u32(80+20)
	size := max(sqArray+4*sqEntries, cqes+cqeBytes*cqEntries)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), prot, flags); err != nil {
		return fmt.Errorf("map io_uring: %w", err)
	}
	if r.sqe, err = unix.Mmap(r.fd, uringOffSQEs, int(sqEntries*sqeBytes), prot, flags); err != nil {
		return fmt.Errorf("map io_uring: %w", err)
	}
	word := func(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[at])) }
	r.sqHead, r.sqTail, r.sqMask = word(u32(40+0)), word(u32(40+4)), *word(u32(40 + 8))
	r.cqHead, r.cqTail, r.cqMask = word(u32(80+0)), word(u32(80+4)), *word(u32(80 + 8))
	r.cqes = r.rings[cqes : cqes+cqeBytes*cqEntries]
	for i := range sqEntries {
		*word(sqArray + 4*i) = i
	}
	return nil
}

func (r *ring) close() error {
	var errs []error
	for _, m := range [][]byte{r.rings, r.sqe} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}

// streamOffset is the offset of what has none.
const streamOffset = ^uint64(0)

// prepare queues a read or write of p, which must stay where it is, and
// referenced, until the completion with the same user data.
func (r *ring) prepare(op byte, fd int, p []byte, user uint64) error {
	return r.prepareAt(op, fd, p, streamOffset, user)
}

// prepareAt is prepare at an offset: 0 for a socket.
func (r *ring) prepareAt(op byte, fd int, p []byte, off, user uint64) error {
	e, err := r.entry()
	if err != nil {
		return err
	}
	e[0] = op
	host.PutUint32(e[4:], uint32(fd))
	host.PutUint64(e[8:], off)
	host.PutUint64(e[16:], uint64(uintptr(unsafe.Pointer(&p[0]))))
	host.PutUint32(e[24:], uint32(len(p)))
	host.PutUint64(e[32:], user)
	return nil
}

// preparePoll queues a poll that completes each time fd becomes readable, or breaks.
func (r *ring) preparePoll(fd int, user uint64) error {
	e, err := r.entry()
	if err != nil {
		return err
	}
	e[0] = uringOpPoll
	host.PutUint32(e[4:], uint32(fd))
	host.PutUint32(e[24:], uringPollMulti)
	putPollEvents(e[28:], unix.POLLIN)
	host.PutUint64(e[32:], user)
	return nil
}

// putPollEvents writes the events of a poll: on big-endian hosts with their halves
// swapped, for what they were before they had 32 bits.
func putPollEvents(at []byte, events uint32) {
	if host.Uint16([]byte{0, 1}) == 1 {
		events = bits.RotateLeft32(events, 16)
	}
	host.PutUint32(at, events)
}

// prepareCancel queues the cancellation of what has the user data.
func (r *ring) prepareCancel(target, user uint64) error {
	e, err := r.entry()
	if err != nil {
		return err
	}
	e[0] = uringOpCancel
	host.PutUint32(e[4:], ^uint32(0))
	host.PutUint64(e[16:], target)
	host.PutUint64(e[32:], user)
	return nil
}

// entry is the next submission, cleared.
func (r *ring) entry() ([]byte, error) {
	if r.pending > r.sqMask { // full: hand over what there is
		if err := r.enter(0); err != nil {
			return nil, err
		}
	}
	e := r.sqe[(r.tail&r.sqMask)*sqeBytes:][:sqeBytes]
	clear(e)
	r.tail++
	r.pending++
	return e, nil
}

// enter hands over what was prepared, and waits until there are at least wait
// completions.
func (r *ring) enter(wait uint32) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.pending), uintptr(wait), r.enterFlags, 0, 0)
		switch errno {
		case 0:
			r.pending -= uint32(n)
			if r.pending == 0 {
				return nil
			}
		case unix.EINTR, unix.EAGAIN: // EAGAIN: the kernel is short of memory now
		default:
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// withdraw takes back what was prepared and the kernel has not taken: its user data.
func (r *ring) withdraw() (users []uint64) {
	for at := atomic.LoadUint32(r.sqHead); at != r.tail; at++ {
		users = append(users, host.Uint64(r.sqe[(at&r.sqMask)*sqeBytes+32:]))
	}
	r.tail, r.pending = r.tail-uint32(len(users)), 0
	atomic.StoreUint32(r.sqTail, r.tail)
	return users
}

// completion takes the next completion, if there is one. More: this submission will
// have others.
func (r *ring) completion() (user uint64, result int32, more, ok bool) {
	head := *r.cqHead // only we write it
	if head == atomic.LoadUint32(r.cqTail) {
		return 0, 0, false, false
	}
	e := r.cqes[(head&r.cqMask)*cqeBytes:]
	user, result, more = host.Uint64(e), int32(host.Uint32(e[8:])), host.Uint32(e[12:])&uringCQEMore != 0
	atomic.StoreUint32(r.cqHead, head+1)
	return user, result, more, true
}
