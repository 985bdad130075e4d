package nbd

import (
	"errors"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

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
