package replica

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// loopIO is a read or write that is carried out by the loop of the thread that
// submitted it.
type loopIO struct {
	op  block.LoopOp
	ses *Session
	io  *block.IO
}

var loopIOs = sync.Pool{New: func() any { return new(loopIO) }}

// startOnLoop carries io out on its loop, if it has one and io is of the plain
// kind. Otherwise it answers false, and the request is still the caller's.
func (s *Session) startOnLoop(io *block.IO) bool {
	img, ok := s.img.(*osImage)
	if io.Loop == nil || !ok || io.Len == 0 || io.FUA || io.Op != block.OpRead && io.Op != block.OpWrite {
		return false
	}
	fd := img.cached
	if s.direct {
		if fd = img.direct; !aligned(io.Data, io.Off) {
			return false
		}
	}
	if !s.gate.enter() {
		return false
	}
	if block.CheckRange(io, s.size.Load()) != nil || io.Op == block.OpWrite && !s.writesNow(io) {
		s.gate.leaveLoop()
		return false
	}
	l := loopIOs.Get().(*loopIO)
	l.ses, l.io = s, io
	l.op.User, l.op.Done = l, loopDone
	l.op.Kind, l.op.FD, l.op.Off, l.op.Data = block.LoopRead, fd, io.Off, io.Data
	if io.Op == block.OpWrite {
		l.op.Kind = block.LoopWrite
	}
	io.Loop.Start(&l.op)
	return true
}

// writesNow says whether a write may begin at once: nothing has to be waited
// for, not even an intent bit, or answered instead.
func (s *Session) writesNow(io *block.IO) bool {
	return s.Warm(io.Off, io.Len) && !s.writeback.full() && s.admit(io.Off, io.Len) == nil
}

// loopDone ends a request on the loop's thread. What did not just succeed is
// sorted out elsewhere, for that may take long.
func loopDone(o *block.LoopOp, n int, err error) {
	l := o.User.(*loopIO)
	s, io := l.ses, l.io
	l.ses, l.io, l.op.Data = nil, nil, nil
	loopIOs.Put(l)
	if err != nil || n != len(io.Data) {
		go s.afterLoop(io, err)
		return
	}
	if io.Op == block.OpWrite {
		s.writeback.count(io.Len)
	}
	io.DoneOn = io.Loop
	io.Done(io, nil)
	s.gate.leaveLoop()
}

// afterLoop ends a request that the loop did not carry out, or only in part. It
// may be carried out again, for it is not answered yet; but a write that failed
// never is.
func (s *Session) afterLoop(io *block.IO, err error) {
	defer s.gate.leave()
	undone := err == nil || errors.Is(err, context.Canceled) ||
		errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EOPNOTSUPP)
	if undone || io.Op == block.OpRead { // a read says what is wrong
		err = s.do(io)
	} else {
		err = s.changed(io, err)
	}
	io.DoneOn = nil
	io.Done(io, err)
}
