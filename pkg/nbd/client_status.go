package nbd

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

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
