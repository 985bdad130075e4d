package nbd

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// looped is a client's membership of a loop. The reader lends the input to the
// loop at a place between two replies; the loop receives there, and answers what
// it can parse: replies without data. For anything else, and for whatever ends
// the connection, it gives the input back to the reader.
type looped struct {
	mu   sync.Mutex
	loop block.Loop // to receive on; nil if there is none

	// Of the time that the input is lent; the loop's thread owns them.
	op   block.LoopOp
	back chan struct{} // the input is the reader's again
}

// Join implements block.Joiner.
func (c *Client) Join(l block.Loop) {
	c.looped.mu.Lock()
	defer c.looped.mu.Unlock()
	if c.sock.own == nil {
		return
	}
	c.looped.loop = l
	c.looped.back = make(chan struct{}, 1)
	c.sock.own.interrupt() // the reader looks up
}

var _ block.Joiner = (*Client)(nil)

// lend lends the input to the loop, if there is one, and waits until it is the
// reader's again. It is called between two replies.
func (c *Client) lend() {
	c.looped.mu.Lock()
	loop := c.looped.loop
	c.looped.mu.Unlock()
	if loop == nil {
		return
	}
	c.deliver() // what was parsed must not wait for the loop
	switch {
	case loop.Post(c.goOnLoop):
		<-c.looped.back
		c.sock.own.drained = false
	default:
		c.looped.leave()
	}
}

// leave forgets the loop: it is over.
func (l *looped) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loop = nil
}

// receiveOnLoop has the loop receive what comes next.
func (c *Client) receiveOnLoop() {
	l := &c.looped
	l.op = block.LoopOp{Kind: block.LoopReceive, FD: c.sock.own.fd, Data: c.in.space(), Done: receivedOnLoop, User: c}
	l.loop.Start(&l.op)
}

// receivedOnLoop parses what the loop has received.
func receivedOnLoop(o *block.LoopOp, n int, err error) {
	c := o.User.(*Client)
	switch {
	case errors.Is(err, unix.EINTR):
		c.receiveOnLoop()
		return
	case errors.Is(err, block.ErrLoopBroken):
		c.abort(err) // replies may be missing
		fallthrough
	case err != nil, n == 0: // the loop ends, or the reader will see the same
		c.looped.leave()
		c.looped.back <- struct{}{}
		return
	}
	c.in.end += n
	c.goOnLoop()
}

// goOnLoop answers what has been received, and receives what comes next, or gives
// the input back.
func (c *Client) goOnLoop() {
	c.onLoop = c.looped.loop
	goOn := c.parseOnLoop()
	c.deliver()
	c.onLoop = nil
	if goOn {
		c.receiveOnLoop()
		return
	}
	c.looped.back <- struct{}{}
}

// parseOnLoop takes replies without data out of the input, until there is none
// left: true, or there is something else.
func (c *Client) parseOnLoop() bool {
	for c.in.buffered() >= simpleBytes {
		head := c.in.peek(simpleBytes)
		if be.Uint32(head) != magicSimple {
			return false
		}
		r := parseSimple(head)
		s, i, err := c.find(r.cookie)
		if err != nil || s.io.Op == block.OpRead || s.io.Op == opStatus {
			return false
		}
		c.in.skip(simpleBytes)
		if r.err != 0 {
			err = c.serverError(s.io, r.err, "")
		}
		if c.complete(i, err) != nil {
			return false
		}
	}
	return true
}
