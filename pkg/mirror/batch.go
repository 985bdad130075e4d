package mirror

import (
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
)

// batch is what SubmitBatch works with.
type batch struct {
	requests []*request
	actions  []core.Action
	legs     [core.MaxLegs]legBatch
}

// legBatch is what one remote leg gets.
type legBatch struct {
	dev Leg
	ios []*block.IO
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// SubmitBatch implements block.Batcher: the machine is locked once, and each
// remote replica gets its part at once, before the local one, which may be
// served here, has its turn.
func (m *Mirror) SubmitBatch(ios []*block.IO) {
	b := batches.Get().(*batch)
	defer b.recycle()
	var loop block.Loop
	for _, io := range ios {
		loop = io.Loop // all are submitted here
		if r := m.begin(io); r != nil {
			b.requests = append(b.requests, r)
		}
	}
	m.lock()
	for _, r := range b.requests {
		m.core.Submit(&r.op)
	}
	b.actions = m.takeLocked(b.actions)
	m.mu.Unlock()
	for i := range b.actions {
		if a := &b.actions[i]; a.Kind == core.Send && a.Leg != m.local {
			b.add(m, a)
		}
	}
	for i := range b.legs {
		b.legs[i].submit()
	}
	for i := range b.actions {
		if a := &b.actions[i]; a.Kind != core.Send || a.Leg == m.local {
			m.carryOut(a, loop)
		}
	}
}

var _ block.Batcher = (*Mirror)(nil)

// add adds a sending to its leg's part.
func (b *batch) add(m *Mirror, a *core.Action) {
	dev, io := m.prepare(a.Leg, a.Session, a.Op)
	if io == nil {
		return
	}
	l := &b.legs[a.Leg]
	if dev != l.dev { // the leg's session changed half way
		l.submit()
		l.dev = dev
	}
	l.ios = append(l.ios, io)
}

func (l *legBatch) submit() {
	if len(l.ios) > 0 {
		block.SubmitAll(l.dev, l.ios)
	}
	clear(l.ios)
	l.dev, l.ios = nil, l.ios[:0]
}

func (b *batch) recycle() {
	clear(b.requests)
	clear(b.actions)
	b.requests, b.actions = b.requests[:0], b.actions[:0]
	batches.Put(b)
}
