package nbd

import (
	"sync"
	"time"
)

// maxRounds bounds how many batches a goroutine of somebody else's writes
// before it leaves the rest to the writer goroutine.
const maxRounds = 4

// frame is one message to be sent: a header and perhaps a payload. It is part
// of a request, so that sending allocates nothing.
type frame struct {
	head    [maxHeadBytes]byte
	headLen int
	payload []byte
	owner   *task  // the server's request that it answers; nil in a client
	next    *frame // of the queue, or of a chain
	queued  bool   // in the queue. Guarded by sender.mu
}

// sender writes frames to a socket in batches: many frames, one vectored write.
// Whoever pushes a frame while nobody writes becomes the writer, in its own
// goroutine, as long as the socket takes everything at once; else the rest is
// handed to the sender's own goroutine, which waits for the peer.
//
// A frame's memory must stay untouched until it has been sent. A server is told
// by release; a client knows by the answer.
type sender struct {
	sock    *socket
	timeout time.Duration  // for some progress of a write that waits
	release func(*frame)   // takes back a chain of sent or dropped frames; nil for a client
	failed  func(error)    // told of a write error, once
	kick    chan struct{}  // hands the writing flag to the goroutine; capacity 1, sent to by its holder only
	stop    chan struct{}  // ends the goroutine
	running sync.WaitGroup // the goroutine

	// Owned by who holds writing.
	vec  [][]byte // backing of left
	left [][]byte // of the batch, what is still to be written
	sent *frame   // the batch, if release is set

	mu          sync.Mutex
	quiet       sync.Cond // writing became false
	first, last *frame    // the queue; bounded by its owner's number of frames
	writing     bool      // somebody owns the fields above
	err         error     // set once; nothing is queued or begun after it
}

// start makes the sender ready and starts its goroutine; close ends it.
func (s *sender) start() {
	s.kick, s.stop = make(chan struct{}, 1), make(chan struct{})
	s.vec = make([][]byte, 0, maxVector)
	s.quiet.L = &s.mu
	s.running.Go(s.loop)
}

// pushLocked queues a chain of frames. If the sender has failed it reports
// false, and the frames stay the caller's.
func (s *sender) pushLocked(first, last *frame) bool {
	if s.err != nil {
		return false
	}
	last.next = nil
	for f := first; f != nil; f = f.next {
		f.queued = true
	}
	if s.last == nil {
		s.first = first
	} else {
		s.last.next = first
	}
	s.last = last
	return true
}

// claimLocked makes the caller the writer, if there is something to write and
// no other writer. The caller must then call run, without the lock.
func (s *sender) claimLocked() bool {
	if s.writing || s.first == nil {
		return false
	}
	s.writing = true
	return true
}

// send queues a chain of frames and writes what the socket takes. It does not
// wait for the peer.
func (s *sender) send(first, last *frame) {
	s.mu.Lock()
	ok := s.pushLocked(first, last)
	run := ok && s.claimLocked()
	s.mu.Unlock()
	switch {
	case !ok:
		last.next = nil
		s.giveBack(first)
	case run:
		s.run()
	}
}

// run is the writer's work in a goroutine that must not wait for the peer.
func (s *sender) run() {
	for range maxRounds {
		if !s.take() {
			return
		}
		left, err := s.sock.try(s.left)
		if err != nil {
			s.fail(err)
			s.drop()
			return
		}
		if s.left = left; len(left) > 0 {
			break
		}
		s.done()
	}
	s.kick <- struct{}{}
}

// loop is the writer's goroutine.
func (s *sender) loop() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
			s.runWaiting()
		}
	}
}

// runWaiting is the writer's work in the sender's goroutine.
func (s *sender) runWaiting() {
	for len(s.left) > 0 || s.take() {
		for len(s.left) > 0 {
			var err error
			if err = s.sock.SetWriteDeadline(time.Now().Add(s.timeout)); err == nil {
				s.left, err = s.sock.write(s.left)
			}
			if err != nil {
				s.fail(err)
				s.drop()
				return
			}
		}
		// Without a deadline again before anybody else may write. An error
		// would come back from the next write.
		_ = s.sock.SetWriteDeadline(time.Time{})
		s.done()
	}
}

// take makes the next batch, or ends the caller's time as the writer.
func (s *sender) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.first == nil {
		s.writing = false
		s.quiet.Broadcast()
		return false
	}
	s.vec = s.vec[:0]
	f := s.first
	for {
		f.queued = false
		s.vec = append(s.vec, f.head[:f.headLen])
		if len(f.payload) > 0 {
			s.vec = append(s.vec, f.payload)
		}
		if f.next == nil || len(s.vec)+2 > maxVector {
			break
		}
		f = f.next
	}
	if s.release != nil {
		s.sent = s.first
	}
	// From here on a client's frames may be answered and used again at any
	// moment after the write, so that only vec may be looked at.
	s.first, f.next = f.next, nil
	if s.first == nil {
		s.last = nil
	}
	s.left = s.vec
	return true
}

// done gives the batch back.
func (s *sender) done() {
	s.left = nil
	if f := s.sent; f != nil {
		s.sent = nil
		s.release(f)
	}
}

// drop ends the caller's time as the writer after an error.
func (s *sender) drop() {
	clear(s.vec)
	s.done()
	s.mu.Lock()
	s.writing = false
	s.quiet.Broadcast()
	s.mu.Unlock()
}

// fail stops the sender, gives the queue back and tells the owner. A write under
// way goes on until the owner closes the socket.
func (s *sender) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	queue := s.first
	s.first, s.last = nil, nil
	s.mu.Unlock()
	s.giveBack(queue)
	s.failed(err)
}

func (s *sender) giveBack(chain *frame) {
	if s.release != nil && chain != nil {
		s.release(chain)
	}
}

// close waits until nobody writes any more and ends the goroutine. The owner
// has called fail and closed the socket.
func (s *sender) close() {
	s.mu.Lock()
	for s.writing {
		s.quiet.Wait()
	}
	s.mu.Unlock()
	close(s.stop)
	s.running.Wait()
}
