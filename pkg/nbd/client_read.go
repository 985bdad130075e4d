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
	close(c.ended)
}

// receive parses replies until the connection ends.
func (c *Client) receive() error {
	for {
		err := c.need(simpleBytes)
		if err != nil {
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
// then Done is called for each.
func (c *Client) deliver() {
	if len(c.done) == 0 {
		return
	}
	var ios [maxCompletions]*block.IO
	c.out.mu.Lock()
	for k, d := range c.done {
		s := &c.slots[d.index]
		ios[k] = s.io
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
		ios[k].Done(ios[k], d.err)
	}
	clear(c.done)
	c.done = c.done[:0]
}

// readData reads p, which follows in the input. What was parsed before is
// delivered first, if that takes a read of the socket.
func (c *Client) readData(p []byte) error {
	p = p[c.in.take(p):]
	for len(p) > 0 {
		c.deliver()
		if len(p) < len(c.in.buf)/8 {
			// Little is missing: with it comes what follows it.
			if err := c.in.fill(); err != nil {
				return unexpected(err)
			}
			p = p[c.in.take(p):]
			continue
		}
		n, err := c.sock.Read(p)
		if n == 0 && err != nil {
			return unexpected(err)
		}
		p = p[n:]
	}
	return nil
}

// chunkReply reads one chunk of a structured reply.
func (c *Client) chunkReply() error {
	if !c.status {
		return badf("a structured reply, which was not negotiated")
	}
	if err := c.need(chunkBytes); err != nil {
		return unexpected(err)
	}
	h := parseChunk(c.in.peek(chunkBytes))
	c.in.skip(chunkBytes)
	s, i, err := c.find(h.cookie)
	if err != nil {
		return err
	}
	switch {
	case h.typ == chunkNone:
		if h.length != 0 || h.flags&chunkFlagDone == 0 {
			return badf("an empty chunk of %d bytes with flags %#x", h.length, h.flags)
		}
	case h.typ == chunkOffsetData:
		err = c.dataChunk(s, h)
	case h.typ == chunkOffsetHole:
		err = c.holeChunk(s, h)
	case h.typ == chunkBlockStatus:
		err = c.statusChunk(s, h)
	case h.typ&chunkErrorBit != 0:
		err = c.errorChunk(s, h)
	default:
		err = badf("a chunk of unknown type %d", h.typ)
	}
	if err != nil || h.flags&chunkFlagDone == 0 {
		return err
	}
	if s.err == nil && s.io.Op == block.OpRead && s.got != s.io.Len {
		return badf("a reply with %d bytes to a read of %d", s.got, s.io.Len)
	}
	return c.complete(i, s.err)
}

// within returns the part of a read's buffer for n bytes at off.
func within(s *slot, off uint64, n int64) ([]byte, error) {
	from := int64(off) - s.io.Off
	if s.io.Op != block.OpRead || n <= 0 || from < 0 || from > s.io.Len || n > s.io.Len-from || n > s.io.Len-s.got {
		return nil, badf("%d bytes at %d in reply to %s at %d+%d", n, off, opName(s.io.Op), s.io.Off, s.io.Len)
	}
	s.got += n
	return s.io.Data[from : from+n], nil
}

func (c *Client) dataChunk(s *slot, h chunk) error {
	if h.length <= chunkOffsetBytes {
		return badf("a data chunk of %d bytes", h.length)
	}
	if err := c.need(chunkOffsetBytes); err != nil {
		return unexpected(err)
	}
	off := be.Uint64(c.in.peek(chunkOffsetBytes))
	c.in.skip(chunkOffsetBytes)
	p, err := within(s, off, int64(h.length)-chunkOffsetBytes)
	if err != nil {
		return err
	}
	return c.readData(p)
}

func (c *Client) holeChunk(s *slot, h chunk) error {
	const size = chunkOffsetBytes + 4
	if h.length != size {
		return badf("a hole chunk of %d bytes", h.length)
	}
	if err := c.need(size); err != nil {
		return unexpected(err)
	}
	b := c.in.peek(size)
	c.in.skip(size)
	p, err := within(s, be.Uint64(b), int64(be.Uint32(b[chunkOffsetBytes:])))
	clear(p)
	return err
}

func (c *Client) statusChunk(s *slot, h chunk) error {
	call, ok := s.io.User.(*statusCall)
	if s.io.Op != opStatus || !ok || call.extents != nil || h.length > maxStatusChunk {
		return badf("a block status of %d bytes in reply to %s", h.length, opName(s.io.Op))
	}
	data := make([]byte, h.length)
	if err := c.readData(data); err != nil {
		return err
	}
	var err error
	call.extents, err = parseExtents(data, c.metaID)
	return err
}

func (c *Client) errorChunk(s *slot, h chunk) error {
	if h.length > maxOptionReply {
		return badf("an error chunk of %d bytes", h.length)
	}
	data := make([]byte, h.length)
	if err := c.readData(data); err != nil {
		return err
	}
	e, message, err := parseErrorData(data)
	if err != nil {
		return err
	}
	s.err = errors.Join(s.err, c.serverError(s.io, e, message))
	return nil
}

// statusCall is a BLOCK_STATUS in flight.
type statusCall struct {
	extents []block.Extent
	answer  chan error
}

// BlockStatus describes n bytes from off on: extents that together cover the
// range. It needs DialOptions.BlockStatus, else it is volume.ErrUnsupported.
func (c *Client) BlockStatus(off, n int64) ([]block.Extent, error) {
	if !c.status {
		return nil, fmt.Errorf("block status: %w: not negotiated", volume.ErrUnsupported)
	}
	if size := c.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("block status at %d+%d on a device of %d bytes: %w", off, n, size, volume.ErrOutOfRange)
	}
	var all []block.Extent
	for n > 0 {
		call := &statusCall{answer: make(chan error, 1)}
		io := &block.IO{Op: opStatus, Off: off, Len: min(n, maxStatusRange), User: call}
		io.Done = func(_ *block.IO, err error) { call.answer <- err }
		c.start(io)
		if err := <-call.answer; err != nil {
			return nil, err
		}
		if len(call.extents) == 0 {
			return nil, fmt.Errorf("block status at %d+%d: %w: an empty answer", off, io.Len, volume.ErrFailed)
		}
		for _, e := range call.extents {
			e.Len = min(e.Len, n) // the last may go on beyond what was asked
			if e.Len == 0 {
				break
			}
			off, n = off+e.Len, n-e.Len
			if k := len(all); k > 0 && all[k-1].Hole == e.Hole {
				all[k-1].Len += e.Len
				continue
			}
			all = append(all, e)
		}
	}
	return all, nil
}
