package replica

import (
	"sync"
	"sync/atomic"
)

// writeback keeps what a flush still has to write small: a flush stalls the
// whole export, reads too, and one that takes longer than the mirror's patience
// costs the leg. After every trigger bytes a round, in the background, has the kernel
// write back what is dirty; at limit bytes writers wait for it.
type writeback struct {
	trigger, limit int64        // see bound
	dirty          atomic.Int64 // written since the last round began
	begin          func()       // has a round run, elsewhere
	running        atomic.Bool  // a round runs, or is about to
	over           atomic.Bool  // the session is over

	mu   sync.Mutex
	room sync.Cond // signalled when dirty fell or the session is over
}

func (w *writeback) init(begin func()) { w.room.L, w.begin = &w.mu, begin }

// bound sets the limits in bytes, before the session is known to anyone. Without
// it nothing is counted.
func (w *writeback) bound(trigger, limit int64) {
	w.trigger, w.limit = trigger, max(limit, trigger)
}

// writeBackRound counts as an I/O under way, so that draining waits for it too.
func (s *Session) writeBackRound() {
	if !s.gate.enter() {
		return
	}
	defer s.gate.leave()
	n := s.writeback.dirty.Load()
	if err := s.img.WriteBack(); err != nil {
		_ = s.fail("write back", err) // later I/O is told
	}
	s.writeback.done(n)
}

// wrote counts n written bytes, and waits when there are too many.
func (w *writeback) wrote(n int64) {
	w.count(n)
	if w.full() {
		w.wait()
	}
}

// count counts n written bytes.
func (w *writeback) count(n int64) {
	if w.trigger == 0 || w.dirty.Add(n) < w.trigger {
		return
	}
	w.kick()
}

func (w *writeback) kick() {
	if !w.over.Load() && w.running.CompareAndSwap(false, true) {
		w.begin()
	}
}

// full says whether writers have to wait.
func (w *writeback) full() bool { return w.trigger > 0 && w.dirty.Load() >= w.limit }

func (w *writeback) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.dirty.Load() >= w.limit && !w.over.Load() {
		w.room.Wait()
	}
}

func (w *writeback) done(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running.Store(false)
	if w.dirty.Add(-n) >= w.trigger { // more came meanwhile
		w.kick()
	}
	w.room.Broadcast()
}

// stop lets waiting writers go.
func (w *writeback) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over.Store(true)
	w.room.Broadcast()
}
