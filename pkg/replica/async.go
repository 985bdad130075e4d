package replica

import (
	"github.com/holdfast-csi/holdfast/pkg/block"
)

// Async is a session whose Submit keeps reads and writes that have to wait for a
// disk off the thread that submits them: what the page cache has is read at once,
// which is quickest; the rest is done by the thread's loop, or by goroutines. Its
// requests must be bounded by whoever submits them.
type Async struct{ *Session }

// Submit implements block.Device.
func (a Async) Submit(io *block.IO) {
	switch {
	case io.Op == block.OpRead && a.TryRead(io):
	case a.startOnLoop(io):
	case io.Op == block.OpRead, io.Op == block.OpWrite && (io.FUA || a.direct || io.Loop != nil || !a.Warm(io.Off, io.Len)):
		a.aside(io)
	default:
		a.Session.Submit(io)
	}
}

func (a Async) aside(io *block.IO) {
	if !a.gate.enter() { // here, not in the goroutine: Close waits for it from now on
		io.Done(io, a.why())
		return
	}
	go a.serve(io)
}
