package nbd

import (
	"math/bits"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// The size classes of payload buffers: powers of two from 4 KiB to maxPayload.
const (
	minClassBits = 12
	maxClassBits = 20
)

// buffer is a page-aligned payload buffer.
type buffer struct {
	data  []byte
	class int
}

// pool keeps payload buffers between requests. What is in use is bounded by the
// connections' limits; what is not is left to the garbage collector.
type pool struct {
	classes [maxClassBits - minClassBits + 1]sync.Pool
}

// get returns a buffer of n bytes or more, 1 <= n <= maxPayload, of any content.
func (p *pool) get(n int) *buffer {
	class := max(bits.Len(uint(n-1)), minClassBits) - minClassBits
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{data: block.Alloc(1 << (class + minClassBits)), class: class}
}

func (p *pool) put(b *buffer) { p.classes[b.class].Put(b) }
