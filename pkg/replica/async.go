package replica

import (
	"github.com/holdfast-csi/holdfast/pkg/block"
)

// Async is a session whose Submit keeps reads and writes that have to wait for a
// disk off the thread that submits them. What the page cache answers or takes is
// done at once, which is quickest. Its requests must be bounded by whoever
// submits them.
type Async struct{ *Session }

// Submit implements block.Device.
func (a Async) Submit(io *block.IO) {
	switch io.Op {
	case block.OpRead:
		if !a.TryRead(io) {
			a.aside(io)
		}
	case block.OpWrite:
		if io.FUA || a.direct {
			a.aside(io)
		} else {
			a.Session.Submit(io)
		}
	default:
		a.Session.Submit(io)
	}
}

func (a Async) aside(io *block.IO) {
	go a.Session.Submit(io) // Session.Close waits for it
}
