package block

import "errors"

// ErrLoopBroken is the answer to a LoopReceive whose loop broke: it may still take
// bytes, which nobody sees.
var ErrLoopBroken = errors.New("the event loop broke")

// Loop is the event loop of one thread, which does the I/O of several parties
// with few system calls and without waking other threads. An export has one; a
// device may use it for requests that are submitted on its thread (IO.Loop), and
// for what it receives (Joiner). Whatever runs on the thread must not block.
type Loop interface {
	// Start begins an operation; only on the loop's thread. Its Done is called on
	// that thread, with context.Canceled once the loop is ending, perhaps before
	// Start returns.
	Start(o *LoopOp)
	// Post has f called on the loop's thread soon. False: the loop is over, and f
	// will not be called.
	Post(f func()) bool
}

// Joiner is a Device that can receive on a loop's thread.
type Joiner interface {
	Device
	// Join has the device use the loop until that ends. It is called once.
	Join(l Loop)
}

// LoopKind is what a LoopOp does.
type LoopKind uint8

// The kinds of operations.
const (
	LoopRead    LoopKind = iota + 1 // of a file, at Off
	LoopWrite                       // likewise
	LoopReceive                     // of a socket; canceled when the loop ends
)

// LoopOp is one operation of a Loop. It and Data, and what FD names, belong to
// the loop from Start until Done is called.
type LoopOp struct {
	Kind LoopKind
	FD   int
	Off  int64
	Data []byte // not empty
	// Done reports how many bytes were read or written, or the system's error.
	Done func(o *LoopOp, n int, err error)
	User any // the caller's own

	// Slot is the loop's own.
	Slot uint32
}
