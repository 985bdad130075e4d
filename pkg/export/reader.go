package export

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// serveThread is a reader that blocks in read(2). Its thread is locked to it,
// so that it wakes up straight into this loop.
func (s *server) serveThread() {
	runtime.LockOSThread()
	for {
		sl := s.pool.get()
		if sl == nil {
			return
		}
		in := s.input(sl)
		n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)))
		if errno != 0 || n == 0 {
			s.drop(sl)
			if !s.readAgain(errno) {
				return
			}
			continue
		}
		if s.take(sl, int(n)) {
			s.dev.Submit(&sl.io)
		}
		if !sl.replied() {
			continue
		}
		if sl.out == nil {
			s.drop(sl)
		} else {
			s.send(sl)
		}
	}
}

// readAgain says whether a read that failed is to be repeated.
func (s *server) readAgain(errno unix.Errno) bool {
	switch errno {
	case unix.EINTR, unix.EAGAIN, unix.ENOMEM, unix.ENOENT: // ENOENT: the request was interrupted before we read it
		return true
	case 0, unix.ENODEV: // unmounted or aborted
	default:
		s.log.Error("reading FUSE requests failed", "err", errno)
	}
	return false
}

const (
	// ringEntries is how much a ring takes at a time.
	ringEntries = 256
	// maxUnnoticed bounds the replies for whose completion alone the thread does
	// not wake up, and with it the slots that an idle export does not give back.
	maxUnnoticed = 2
	// yieldAfter and yieldRounds are how long, and how often, a thread waits in its
	// ring at least between two calls of the Go scheduler.
	yieldAfter  = 5 * time.Millisecond
	yieldRounds = 16
)

// ringReader reads requests and sends replies in batches: the replies to one batch,
// and what the next asks of the disk, cost one system call.
type ringReader struct {
	*server
	ring    *ring
	loop    *ringLoop
	failed  error // the ring's, from within a call that can't return it
	writing int   // replies in the kernel
	ending  bool
	over    bool // serve has returned: nothing is handed to the ring any more
	yielded time.Time
	rounds  int // since then

	listening bool  // the ring tells when there are requests
	readable  bool  // there may be requests
	starved   bool  // there is no slot to read one to
	spare     *slot // for the next request; nil: to be taken from the pool

	// The requests of one round, and what of them goes to the device.
	slots []*slot
	ios   []*block.IO
}

// serveRing is the reader that uses io_uring. It first says on ready whether it
// can.
func (s *server) serveRing(ready chan<- error) {
	runtime.LockOSThread() // a ring belongs to its thread
	reader, err := newRingReader(s)
	ready <- err
	if err != nil {
		return
	}
	r := reader.ring
	s.ring.Store(reader)
	if j, ok := s.dev.(block.Joiner); ok {
		j.Join(reader.loop)
	}
	if err := reader.serve(); err != nil {
		// Better an error than a device that hangs. The kernel may still use
		// the buffers of what is in the ring, so their slots stay out for good
		// and nothing is released.
		s.log.Error("serving an export ends", "err", err)
		s.abort()
		s.lost()
		reader.over = true
		reader.loop.abandon()
		return
	}
	reader.over = true
	reader.loop.close()
	if err := errors.Join(r.close(), unix.Close(reader.loop.wakeFD)); err != nil {
		s.log.Error("closing an io_uring failed", "err", err)
	}
}

// newRingReader makes a ring on this thread. On an error the descriptor still
// blocks: the threads that read it instead would not wait.
func newRingReader(s *server) (*ringReader, error) {
	r, err := newRing(ringEntries)
	if err != nil {
		return nil, err
	}
	reader := &ringReader{server: s, ring: r, readable: true, yielded: time.Now()}
	if reader.loop, err = newRingLoop(r, reader.fail); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return nil, errors.Join(err, r.close(), unix.Close(reader.loop.wakeFD))
	}
	return reader, nil
}

// fail has serve end soon.
func (r *ringReader) fail(err error) { r.failed = errors.Join(r.failed, err) }

func (r *ringReader) serve() error {
	defer r.giveBack()
	for {
		if err := errors.Join(r.failed, r.listen(), r.loop.arm()); err != nil {
			return err
		}
		if r.ending {
			if over, err := r.end(); over || err != nil {
				return err
			}
		}
		r.yield()
		if err := r.ring.enter(r.awaited()); err != nil {
			return err
		}
		r.complete()
		r.receive()
		if err := r.submit(); err != nil {
			return err
		}
	}
}

// end cancels what would wait for ever. It says whether nothing is left.
func (r *ringReader) end() (over bool, err error) {
	if !r.loop.ending {
		if err := r.loop.end(); err != nil {
			return false, err
		}
		if r.listening {
			if err := r.ring.prepareCancel(ringPoll, ringCancel); err != nil {
				return false, err
			}
		}
	}
	return !r.listening && r.writing == 0 && r.loop.active == 0, nil
}

// complete takes what the ring has done.
func (r *ringReader) complete() {
	for {
		user, result, more, ok := r.ring.completion()
		if !ok {
			return
		}
		switch n := user &^ ringKind; user & ringKind {
		case ringPoll:
			r.heard(result, more)
		case ringWrite:
			r.sent(n, result)
		case ringOp:
			r.loop.done(uint32(n), result)
		case ringWake:
			r.loop.waking = false
			r.loop.run()
		}
	}
}

// awaited is how many completions the thread waits for: one besides those of a few
// replies, which are written while they are handed over and alone give it nothing
// to do, unless their slots are needed. It does not wait while there are requests.
func (r *ringReader) awaited() uint32 {
	switch {
	case r.readable && !r.starved && !r.ending:
		return 0
	case r.writing > maxUnnoticed || r.starved || r.ending:
		return 1
	}
	return uint32(r.writing) + 1
}

// yield has the Go scheduler see now and then that this goroutine does not run all
// the time. One that is locked to its thread does not pass through it otherwise;
// the runtime's monitor then takes it for one to be preempted, and tries to every
// 20 µs, on a thread of its own.
func (r *ringReader) yield() {
	if r.rounds++; r.rounds < yieldRounds {
		return
	}
	if now := time.Now(); now.Sub(r.yielded) > yieldAfter {
		runtime.Gosched()
		r.yielded, r.rounds = now, 0
	}
}

// submit submits the round's requests together, and prepares the replies that
// are there at once.
func (r *ringReader) submit() error {
	block.SubmitAll(r.dev, r.ios)
	clear(r.ios)
	r.ios = r.ios[:0]
	for _, sl := range r.slots {
		switch {
		case !sl.replied():
		case sl.out == nil:
			r.drop(sl)
		default:
			r.reply(sl)
		}
	}
	r.slots = r.slots[:0]
	return r.failed
}

// reply sends a reply with the next round, if there is one.
func (r *ringReader) reply(sl *slot) {
	if r.over {
		r.send(sl)
		return
	}
	r.writing++
	if err := r.ring.prepare(uringOpWrite, r.fd, sl.out, ringWrite|uint64(sl.number)); err != nil {
		r.fail(err)
	}
}

// wake has the thread look at the pool again.
func (r *ringReader) wake() { r.loop.Post(func() {}) }

// sent takes the completion of a reply.
func (r *ringReader) sent(number uint64, result int32) {
	r.writing--
	sl := r.pool.slots[number]
	if errno := unix.Errno(-min(result, 0)); errno != 0 && !r.checkSent(errno) {
		go r.send(sl) // which may have to wait; its slot keeps the server alive
		return
	}
	r.drop(sl)
}

// ringFinding says whether this host has io_uring.
func ringFinding() finding {
	r, err := newRing(1)
	if err != nil {
		return finding{false, fmt.Sprintf("%v; FUSE requests are read by %d threads instead", err, DefaultThreads)}
	}
	if err := r.close(); err != nil {
		return finding{false, err.Error()}
	}
	return finding{true, "FUSE requests are read and answered in batches"}
}
