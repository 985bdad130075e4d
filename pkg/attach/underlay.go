package attach

import (
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
)

// underlay is what lies under an export: the volume's mirror, which can be
// replaced while the export stays. Requests that come while there is none are
// parked, as many as the export has buffers, and none is lost.
//
// Submit never waits: it may be called on a thread that brings the old mirror the
// answers that it needs to end.
type underlay struct {
	// gate is held for reading while a request is handed to the mirror, for
	// writing while there is none. It is taken for reading by trying only.
	gate sync.RWMutex
	mir  *mirror.Mirror // Guarded by mu for all but Submit, and by gate for that.

	mu     sync.Mutex
	held   bool        // Guarded by mu.
	parked []*block.IO // Guarded by mu.
	loop   block.Loop  // of the export, or nil. Guarded by mu.
}

func newUnderlay(m *mirror.Mirror) *underlay { return &underlay{mir: m} }

// mirror is the present mirror, or the last one while there is none.
func (u *underlay) mirror() (m *mirror.Mirror, held bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mir, u.held
}

// Size implements block.Device.
func (u *underlay) Size() int64 {
	m, _ := u.mirror()
	return m.Size()
}

// Close implements block.Device: the mirror's owner closes it.
func (u *underlay) Close() error { return nil }

// Submit implements block.Device.
func (u *underlay) Submit(io *block.IO) {
	for {
		if u.gate.TryRLock() {
			u.mir.Submit(io)
			u.gate.RUnlock()
			return
		}
		if u.park(io) {
			return
		}
	}
}

// SubmitBatch implements block.Batcher.
func (u *underlay) SubmitBatch(ios []*block.IO) {
	for {
		if u.gate.TryRLock() {
			u.mir.SubmitBatch(ios)
			u.gate.RUnlock()
			return
		}
		if u.park(ios...) {
			return
		}
	}
}

// park keeps requests for the next mirror; false if it is there already.
func (u *underlay) park(ios ...*block.IO) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.held {
		for _, io := range ios {
			io.Loop = nil // they will be submitted on another thread
		}
		u.parked = append(u.parked, ios...)
	}
	return u.held
}

// hold parks what comes from now on. When it returns no request is on its way to
// the mirror; those that it has are its own business.
func (u *underlay) hold() {
	u.mu.Lock()
	u.held = true
	u.mu.Unlock()
	u.gate.Lock()
}

// release lets requests go on to m, those that were parked first to last.
func (u *underlay) release(m *mirror.Mirror) {
	u.mu.Lock()
	u.mir = m
	loop := u.loop
	u.mu.Unlock()
	if loop != nil {
		m.Join(loop)
	}
	u.gate.Unlock()
	u.mu.Lock()
	parked := u.parked
	u.parked, u.held = nil, false
	u.mu.Unlock()
	if len(parked) > 0 {
		u.SubmitBatch(parked)
	}
}

// Join implements block.Joiner, for this mirror and those to come.
func (u *underlay) Join(l block.Loop) {
	u.mu.Lock()
	u.loop = l
	m := u.mir
	u.mu.Unlock()
	m.Join(l)
}

var (
	_ block.Batcher = (*underlay)(nil)
	_ block.Joiner  = (*underlay)(nil)
)
