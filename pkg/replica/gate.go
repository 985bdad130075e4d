package replica

import (
	"sync"
	"sync/atomic"
)

// gate counts I/O in and out with one atomic addition each, and can be shut:
// then nobody enters any more, and emptied runs once the last one has left.
type gate struct {
	// inside counts I/O under way; the bit shutBit says that the gate is shut.
	// Invariant: emptied has not run while the count is positive.
	inside  atomic.Int64
	once    sync.Once
	emptied func()
	empty   chan struct{} // closed after emptied has run
}

const shutBit = 1 << 62

func (g *gate) init(emptied func()) { g.emptied, g.empty = emptied, make(chan struct{}) }

// enter counts one in; false when the gate is shut.
func (g *gate) enter() bool {
	if g.inside.Add(1)&shutBit == 0 {
		return true
	}
	g.leaveLoop() // it may be one
	return false
}

// leave counts one out.
func (g *gate) leave() {
	if g.inside.Add(-1) == shutBit {
		g.settle()
	}
}

// leaveLoop is leave on a loop's thread, which must not wait for what emptied does:
// it closes files, and syncs one.
func (g *gate) leaveLoop() {
	if g.inside.Add(-1) != shutBit {
		return
	}
	select {
	case <-g.empty:
	default:
		go g.settle() // who waits for empty waits for it
	}
}

// shut closes the gate; it does not wait (empty tells).
func (g *gate) shut() {
	if g.inside.Or(shutBit) == 0 {
		g.settle()
	}
}

func (g *gate) isShut() bool { return g.inside.Load()&shutBit != 0 }

// settle may be reached more than once: one who comes too late counts itself in
// and out again.
func (g *gate) settle() {
	g.once.Do(func() {
		g.emptied()
		close(g.empty)
	})
}
