package export

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxRound bounds the requests that are read until they are submitted: with more, the
// disk has nothing to do meanwhile.
const maxRound = 8

// How a ring reader gets its requests. They are read with read(2), one after the
// other until there is none; the ring only says when it is worth while. That costs
// less than reads by the ring, which each find nothing at first, wait to be told,
// and try again; and the next request need not be prepared for before the disk is
// told of this one.

// listen has the ring tell when there are requests. One poll does so until the
// kernel says that it is over.
func (r *ringReader) listen() error {
	if r.listening || r.ending {
		return nil
	}
	r.listening = true
	return r.ring.preparePoll(r.fd, ringPoll)
}

// heard takes what the poll says.
func (r *ringReader) heard(result int32, more bool) {
	r.listening = more
	if result >= 0 {
		r.readable = true // or gone, which reading tells
	} else if errno := unix.Errno(-result); !r.ending && errno != unix.ECANCELED {
		r.fail(fmt.Errorf("waiting for FUSE requests: %w", errno))
	}
}

// receive reads what requests there are. If the pool is empty, whoever returns a
// slot wakes the thread.
func (r *ringReader) receive() {
	r.starved = false
	for range maxRound {
		if !r.readable || r.ending {
			return
		}
		if r.spare == nil {
			r.spare, r.ending = r.pool.getOr(r.wake)
		}
		if r.spare == nil {
			r.starved = !r.ending
			return
		}
		r.read()
	}
}

// read reads one request into the spare slot.
func (r *ringReader) read() {
	sl := r.spare
	in := r.input(sl)
	// It does not wait, so the Go scheduler need not know.
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(r.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)))
	switch {
	case errno == unix.EAGAIN:
		r.readable = false
		return
	case errno != 0 || n == 0:
		r.ending = !r.readAgain(errno)
		return
	}
	r.spare = nil
	if r.take(sl, int(n)) {
		sl.io.Loop = r.loop
		r.ios = append(r.ios, &sl.io)
	}
	r.slots = append(r.slots, sl)
}

// giveBack returns the spare slot.
func (r *ringReader) giveBack() {
	if r.spare != nil {
		r.drop(r.spare)
		r.spare = nil
	}
}
