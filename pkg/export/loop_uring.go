package export

import (
	"context"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// ringLoop is the block.Loop of a ring reader: its thread's ring also carries out
// what the device starts there.
type ringLoop struct {
	ring   *ring
	fail   func(error) // the ring can't be used any more
	ending bool
	ops    []*block.LoopOp // by LoopOp.Slot; nil where free
	free   []uint32
	active int // operations in the kernel

	wakeFD  int    // an eventfd that is always being read
	wakeBuf []byte // 8 bytes
	waking  bool   // the read is in the kernel

	mu     sync.Mutex
	posted []func() // Guarded by mu.
	over   bool     // Guarded by mu.
}

// The user data of completions: what they are about, and its number.
const (
	ringPoll   = iota << 32 // there are requests
	ringWrite               // the slot's reply was written
	ringOp                  // the operation is done
	ringWake                // somebody has posted
	ringCancel              // a cancellation is done; the operation says so itself
	ringKind   = 7 << 32
)

func newRingLoop(r *ring, fail func(error)) (*ringLoop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &ringLoop{ring: r, fail: fail, wakeFD: fd, wakeBuf: make([]byte, 8)}, nil
}

// Start implements block.Loop.
func (l *ringLoop) Start(o *block.LoopOp) {
	if l.ending && o.Kind == block.LoopReceive {
		o.Done(o, 0, context.Canceled)
		return
	}
	if n := len(l.free); n > 0 {
		o.Slot = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		o.Slot = uint32(len(l.ops))
		l.ops = append(l.ops, nil)
	}
	l.ops[o.Slot] = o
	l.active++
	op, off := byte(uringOpRead), uint64(o.Off)
	switch o.Kind {
	case block.LoopWrite:
		op = uringOpWrite
	case block.LoopReceive:
		op, off = uringOpReceive, 0
	}
	if err := l.ring.prepareAt(op, o.FD, o.Data, off, ringOp|uint64(o.Slot)); err != nil {
		l.fail(err)
		l.done(o.Slot, -int32(unix.ECANCELED)) // there is no submission
	}
}

// done ends an operation.
func (l *ringLoop) done(slot uint32, result int32) {
	o := l.ops[slot]
	l.ops[slot] = nil
	l.free = append(l.free, slot)
	l.active--
	var err error
	switch errno := unix.Errno(-min(result, 0)); errno {
	case 0:
	case unix.ECANCELED:
		err = context.Canceled
	default:
		err = errno
	}
	o.Done(o, int(max(result, 0)), err)
}

// Post implements block.Loop.
func (l *ringLoop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.posted = append(l.posted, f)
	if len(l.posted) == 1 {
		one := [8]byte{1}
		host.PutUint64(one[:], 1)
		// It fails only if the counter is full, which wakes too.
		_, _, _ = unix.Syscall(unix.SYS_WRITE, uintptr(l.wakeFD), uintptr(unsafe.Pointer(&one[0])), 8)
	}
	return true
}

// arm has the ring wait for posts.
func (l *ringLoop) arm() error {
	if l.waking {
		return nil
	}
	l.waking = true
	return l.ring.prepareAt(uringOpRead, l.wakeFD, l.wakeBuf, 0, ringWake)
}

// run calls what was posted.
func (l *ringLoop) run() {
	l.mu.Lock()
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range posted {
		f()
	}
}

// end cancels what would wait for others for ever.
func (l *ringLoop) end() error {
	l.ending = true
	for slot, o := range l.ops {
		if o != nil && o.Kind == block.LoopReceive {
			if err := l.ring.prepareCancel(ringOp|uint64(slot), ringCancel); err != nil {
				return err
			}
		}
	}
	return nil
}

// close refuses posts from now on, and runs the last ones. Nothing is in the kernel.
func (l *ringLoop) close() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.ending = true
	l.run()
}

// abandon is close for a ring that has failed. What the kernel was not told of is
// canceled, and may be done elsewhere. What it was told of it may still do, at any
// time: bytes that are written after their session was drained would be wrong. So a
// read or write is answered when it has ended, however long that takes; who receives
// is told to begin anew, but its memory is kept until the kernel is done with it.
func (l *ringLoop) abandon() {
	l.close()
	for _, user := range l.ring.withdraw() {
		if user&ringKind == ringOp {
			l.done(uint32(user&^ringKind), -int32(unix.ECANCELED))
		}
	}
	var lent []*block.LoopOp
	for slot, o := range l.ops {
		if o != nil && o.Kind == block.LoopReceive {
			l.ops[slot] = nil
			lent = append(lent, &block.LoopOp{Data: o.Data})
			o.Done(o, 0, block.ErrLoopBroken)
		}
	}
	for wait := time.Millisecond; l.active > 0; wait = min(2*wait, maxReapPause) {
		time.Sleep(wait)
		_ = l.ring.enter(0) // it has failed already; completions may come all the same
		l.reap()
	}
	runtime.KeepAlive(lent)
}

// maxReapPause is how often, at least, a failed ring is looked at.
const maxReapPause = 100 * time.Millisecond

// reap takes the completions of operations, and no others, which nobody awaits.
func (l *ringLoop) reap() {
	for {
		user, result, _, ok := l.ring.completion()
		switch slot := uint32(user &^ ringKind); {
		case !ok:
			return
		case user&ringKind != ringOp:
		case l.ops[slot] == nil: // answered
			l.active--
		default:
			l.done(slot, result)
		}
	}
}
