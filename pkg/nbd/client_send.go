package nbd

import (
	"fmt"
	"math"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Submit implements block.Device.
func (c *Client) Submit(io *block.IO) {
	if err := c.check(io); err != nil {
		io.Done(io, err)
		return
	}
	switch {
	case io.Op.Changes() && io.Len == 0:
		io.Done(io, c.state()) // the protocol leaves empty requests undefined; Holdfast's server answers reads
	case io.Len > maxRangeBytes:
		c.split(io)
	default:
		c.start(io)
	}
}

// SubmitBatch implements block.Batcher.
func (c *Client) SubmitBatch(ios []*block.IO) {
	plain := ios[:0]
	for _, io := range ios {
		if io.Len > 0 && io.Len <= maxRangeBytes && c.check(io) == nil {
			plain = append(plain, io)
		} else {
			c.Submit(io)
		}
	}
	c.start(plain...)
}

var _ block.Batcher = (*Client)(nil)

// neededFlags is what the server must have advertised for each operation.
var neededFlags = map[block.Op]uint16{
	block.OpFlush: flagFlush, block.OpTrim: flagTrim, block.OpWriteZeroes: flagWriteZeroes,
}

// check refuses what must not be sent.
func (c *Client) check(io *block.IO) error {
	if err := block.CheckRange(io, c.Size()); err != nil {
		return err
	}
	if io.Op == block.OpRead || io.Op == block.OpWrite && !io.FUA && !c.ReadOnly() {
		return nil
	}
	need := neededFlags[io.Op]
	if io.FUA {
		need |= flagFUA
	}
	if c.flags&need != need {
		return fmt.Errorf("%s on export %q: %w by its server", io.Op, c.opts.Name, volume.ErrUnsupported)
	}
	if c.ReadOnly() && io.Op.Changes() {
		return fmt.Errorf("%s on read-only export %q: %w", io.Op, c.opts.Name, volume.ErrPrecondition)
	}
	return nil
}

// state is the error that requests get since the connection ended, or nil.
func (c *Client) state() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.err
}

// start sends requests, or lets them wait for a slot.
func (c *Client) start(ios ...*block.IO) {
	c.out.mu.Lock()
	if err := c.err; err != nil {
		c.out.mu.Unlock()
		for _, io := range ios {
			io.Done(io, err)
		}
		return
	}
	for _, io := range ios {
		if len(c.free) == 0 {
			c.waiting.push(io)
		} else {
			c.placeLocked(io)
		}
	}
	run := c.out.claimLocked()
	c.out.mu.Unlock()
	if run {
		c.out.run()
	}
}

// placeLocked gives io a slot and queues its frame. There is a free slot.
func (c *Client) placeLocked(io *block.IO) {
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	s := &c.slots[i]
	s.gen++
	s.io, s.err, s.got = io, nil, 0
	req := request{typ: commandOf(io.Op), cookie: uint64(s.gen)<<32 | uint64(i+1), off: uint64(io.Off), length: uint32(io.Len)}
	if io.FUA {
		req.flags |= cmdFlagFUA
	}
	if io.NoHole && io.Op == block.OpWriteZeroes {
		req.flags |= cmdFlagNoHole
	}
	s.frame.headLen, s.frame.payload = requestBytes, nil
	if io.Op == block.OpWrite {
		s.frame.payload = io.Data
	}
	req.put(s.frame.head[:])
	s.cookie.Store(req.cookie)
	// If the sender has just failed, the reader answers the slot when it leaves.
	c.out.pushLocked(&s.frame, &s.frame)
}

// opStatus is BLOCK_STATUS within the client; IO.User is a *statusCall.
const opStatus block.Op = math.MaxUint8

func commandOf(op block.Op) uint16 {
	switch op {
	case block.OpRead:
		return cmdRead
	case block.OpWrite:
		return cmdWrite
	case block.OpFlush:
		return cmdFlush
	case block.OpTrim:
		return cmdTrim
	case block.OpWriteZeroes:
		return cmdWriteZeroes
	}
	return cmdBlockStatus
}

// split sends a range that is too long for one request as several.
func (c *Client) split(io *block.IO) {
	var mu sync.Mutex
	var first error
	left := int((io.Len + maxRangeBytes - 1) / maxRangeBytes)
	done := func(_ *block.IO, err error) {
		mu.Lock()
		left--
		last := left == 0
		if first == nil {
			first = err
		}
		err = first
		mu.Unlock()
		if last {
			io.Done(io, err)
		}
	}
	end := io.Off + io.Len // io may be answered, and gone, before the loop ends
	template := block.IO{Op: io.Op, FUA: io.FUA, NoHole: io.NoHole, Done: done}
	for off := io.Off; off < end; off += maxRangeBytes {
		part := template
		part.Off, part.Len = off, min(maxRangeBytes, end-off)
		c.start(&part)
	}
}
