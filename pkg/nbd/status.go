package nbd

import "github.com/holdfast-csi/holdfast/pkg/block"

// appendExtents makes the data of a BLOCK_STATUS chunk about length bytes:
// neighbours of one kind are merged, and what goes beyond length is cut off. A
// limit on the number of descriptors shortens the answer, which the
// specification allows. It returns the number of bytes described, too.
func appendExtents(b []byte, extents []block.Extent, length int64, limit int) ([]byte, int64) {
	b = be.AppendUint32(b, contextAllocationID)
	var done int64
	at := -1 // index in b of the last descriptor
	for _, e := range extents {
		n := min(e.Len, length-done)
		if n <= 0 {
			continue
		}
		flags := uint32(0)
		if e.Hole {
			flags = stateHole | stateZero
		}
		if at >= 0 && be.Uint32(b[at+4:]) == flags {
			be.PutUint32(b[at:], be.Uint32(b[at:])+uint32(n))
		} else {
			if limit == 0 {
				break
			}
			limit--
			at = len(b)
			b = be.AppendUint32(b, uint32(n))
			b = be.AppendUint32(b, flags)
		}
		done += n
	}
	return b, done
}

// parseExtents reads the data of a BLOCK_STATUS chunk about one context. Only
// what is a hole and reads as zeroes is a Hole.
func parseExtents(b []byte, context uint32) ([]block.Extent, error) {
	if len(b) < 12 || (len(b)-4)%8 != 0 {
		return nil, badf("a block status of %d bytes", len(b))
	}
	if id := be.Uint32(b); id != context {
		return nil, badf("a block status of context %d, which was not asked for", id)
	}
	extents := make([]block.Extent, 0, (len(b)-4)/8)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		n, flags := be.Uint32(b), be.Uint32(b[4:])
		if n == 0 {
			return nil, badf("an empty extent in a block status")
		}
		const gone = stateHole | stateZero
		extents = append(extents, block.Extent{Len: int64(n), Hole: flags&gone == gone})
	}
	return extents, nil
}
