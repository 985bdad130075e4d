package nbd

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// memory is the quickest device there can be: it copies and answers inside
// Submit, without a lock.
type memory struct{ data []byte }

func (m *memory) Size() int64    { return int64(len(m.data)) }
func (m *memory) ReadOnly() bool { return false }
func (m *memory) Close() error   { return nil }

func (m *memory) BlockStatus(_, n int64) ([]block.Extent, error) {
	return []block.Extent{{Len: n}}, nil
}

func (m *memory) Submit(io *block.IO) {
	err := block.CheckRange(io, m.Size())
	if err == nil {
		switch io.Op {
		case block.OpRead:
			copy(io.Data, m.data[io.Off:])
		case block.OpWrite:
			copy(m.data[io.Off:], io.Data)
		}
	}
	io.Done(io, err)
}

// load keeps depth requests in flight until n have been answered: each Done
// submits the next, as a mirror's does.
func load(b testing.TB, d block.Device, op block.Op, size, depth, n int) {
	var left, running atomic.Int64
	left.Store(int64(n))
	running.Store(int64(depth))
	finished := make(chan error, 1)
	for i := range depth {
		io := &block.IO{Op: op, Off: int64(i * size), Len: int64(size), Data: block.Alloc(size)}
		io.Done = func(io *block.IO, err error) {
			if err == nil && left.Add(-1) >= 0 {
				d.Submit(io)
				return
			}
			if running.Add(-1) == 0 || err != nil {
				select {
				case finished <- err:
				default:
				}
			}
		}
		go d.Submit(io)
	}
	if err := <-finished; err != nil {
		b.Fatal(err)
	}
}

func BenchmarkClient(b *testing.B) {
	for _, op := range []block.Op{block.OpWrite, block.OpRead} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%dKiB/depth%d", op, size>>10, depth), func(b *testing.B) {
					c := dial(b, DialOptions{Addr: one(b, &memory{data: make([]byte, 32<<20)}).addr})
					load(b, c, op, size, depth, 100) // buffers and workers come to be
					b.SetBytes(int64(size))
					b.ReportAllocs()
					b.ResetTimer()
					load(b, c, op, size, depth, b.N)
				})
			}
		}
	}
}
