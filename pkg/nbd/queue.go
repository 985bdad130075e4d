package nbd

import "github.com/holdfast-csi/holdfast/pkg/block"

// queue holds requests in order. Its memory is a pointer for each request that
// its callers have handed over, so that they bound it.
type queue struct {
	ios  []*block.IO
	next int // index of the first that is still in it
}

func (q *queue) empty() bool { return q.next == len(q.ios) }

func (q *queue) push(io *block.IO) {
	if q.next > 0 && len(q.ios) == cap(q.ios) {
		n := copy(q.ios, q.ios[q.next:])
		clear(q.ios[n:])
		q.ios, q.next = q.ios[:n], 0
	}
	q.ios = append(q.ios, io)
}

// pop takes the first; the queue is not empty.
func (q *queue) pop() *block.IO {
	io := q.ios[q.next]
	q.ios[q.next] = nil
	q.next++
	if q.empty() {
		q.ios, q.next = q.ios[:0], 0
	}
	return io
}
