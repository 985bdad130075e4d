package nbd

import (
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// read is the reader goroutine: it answers requests until the connection ends,
// and then those that are left.
func (c *Client) read() {
	err := c.receive()
	c.abort(err)
	c.deliver() // what was parsed before the end counts
	c.out.fail(err)
	c.out.close() // from here on nobody reads the requests' memory

	c.out.mu.Lock()
	closing, cause := c.closing, c.cause
	failure := fmt.Errorf("export %q of %s: %w: %w", c.opts.Name, c.opts.Addr, volume.ErrUnavailable, unexpected(cause))
	if c.err == nil {
		c.err = failure
	}
	answer := c.err
	var left []*block.IO
	for i := range c.slots {
		if s := &c.slots[i]; s.cookie.Load() != 0 {
			left = append(left, s.io)
		}
	}
	for !c.waiting.empty() {
		left = append(left, c.waiting.pop())
	}
	c.out.mu.Unlock()

	for _, io := range left {
		io.Done(io, answer)
	}
	if !closing {
		c.opts.Logger.Warn("nbd connection broken", "peer", c.opts.Addr, "export", c.opts.Name, "error", cause)
		if c.opts.OnFail != nil {
			c.opts.OnFail(failure)
		}
	}
	c.sock.release()
	close(c.ended)
}

// receive parses replies until the connection ends.
func (c *Client) receive() error {
	for {
		c.lend()
		err := c.needOnce(simpleBytes)
		switch {
		case errors.Is(err, errInterrupted):
			continue
		case err != nil:
			return err
		}
		switch m := be.Uint32(c.in.peek(4)); m {
		case magicSimple:
			err = c.simpleReply()
		case magicChunk:
			err = c.chunkReply()
		default:
			err = badf("reply magic is %#08x", m)
		}
		if err != nil {
			return err
		}
	}
}

// need waits for n bytes of input. What was parsed before is delivered first.
func (c *Client) need(n int) error {
	for {
		if err := c.needOnce(n); !errors.Is(err, errInterrupted) {
			return err
		}
	}
}

// needOnce is need, which Join may interrupt.
func (c *Client) needOnce(n int) error {
	if c.in.buffered() >= n {
		return nil
	}
	c.deliver()
	return c.in.need(n)
}

// find returns the slot that a reply is for.
func (c *Client) find(cookie uint64) (*slot, uint32, error) {
	i := uint32(cookie) - 1
	if uint64(i) >= uint64(len(c.slots)) || c.slots[i].cookie.Load() != cookie {
		return nil, 0, badf("a reply with cookie %#x, which no request in flight has", cookie)
	}
	return &c.slots[i], i, nil
}

func (c *Client) simpleReply() error {
	r := parseSimple(c.in.peek(simpleBytes))
	c.in.skip(simpleBytes)
	s, i, err := c.find(r.cookie)
	if err != nil {
		return err
	}
	switch {
	case s.io.Op == opStatus || s.io.Op == block.OpRead && c.status:
		return badf("a simple reply to %s, where a structured one was negotiated", opName(s.io.Op))
	case r.err != 0:
		return c.complete(i, c.serverError(s.io, r.err, ""))
	case s.io.Op == block.OpRead:
		if err := c.readData(s.io.Data); err != nil {
			return err
		}
	}
	return c.complete(i, nil)
}

func (c *Client) serverError(io *block.IO, e errno, message string) error {
	if message == "" {
		message = e.String()
	}
	return fmt.Errorf("%s at %d+%d: %w: export %q of %s says %s",
		opName(io.Op), io.Off, io.Len, e.sentinel(), c.opts.Name, c.opts.Addr, message)
}

func opName(op block.Op) string {
	if op == opStatus {
		return "block-status"
	}
	return op.String()
}

// complete adds an answered request to the batch. A second reply to it finds
// its cookie gone.
func (c *Client) complete(i uint32, err error) error {
	c.slots[i].cookie.Store(0)
	c.done = append(c.done, completion{index: i, err: err})
	if len(c.done) == cap(c.done) {
		c.deliver()
	}
	return nil
}

// deliver answers the batch: its slots go to the requests that wait for one,
// then Done is called for each. A slot whose request is still to be sent is not
// given away: a server that answers it is making its replies up.
func (c *Client) deliver() {
	if len(c.done) == 0 {
		return
	}
	var ios [maxCompletions]*block.IO
	madeUp := false
	c.out.mu.Lock()
	for k, d := range c.done {
		s := &c.slots[d.index]
		ios[k] = s.io
		if s.frame.queued {
			madeUp = true
			continue
		}
		s.io, s.frame.payload = nil, nil
		c.free = append(c.free, d.index)
	}
	for c.err == nil && len(c.free) > 0 && !c.waiting.empty() {
		c.placeLocked(c.waiting.pop())
	}
	run := c.out.claimLocked()
	c.out.mu.Unlock()
	if run {
		c.out.run()
	}
	for k, d := range c.done {
		ios[k].DoneOn = c.onLoop
		ios[k].Done(ios[k], d.err)
	}
	clear(c.done)
	c.done = c.done[:0]
	if madeUp {
		c.abort(badf("a reply to a request that has not been sent"))
	}
}

// readData reads p, which follows in the input. What was parsed before is
// delivered first, if that takes a read of the socket.
func (c *Client) readData(p []byte) error {
	p = p[c.in.take(p):]
	for len(p) > 0 {
		c.deliver()
		if len(p) < len(c.in.buf)/8 {
			// Little is missing: with it comes what follows it.
			if err := c.in.fill(); err != nil && !errors.Is(err, errInterrupted) {
				return unexpected(err)
			}
			p = p[c.in.take(p):]
			continue
		}
		n, err := c.sock.Read(p)
		if n == 0 && err != nil && !errors.Is(err, errInterrupted) {
			return unexpected(err)
		}
		p = p[n:]
	}
	return nil
}
