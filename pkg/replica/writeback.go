package replica

import (
	"sync"
	"sync/atomic"
)

// writeback keeps what a flush still has to write small: a flush stalls the
// whole export, reads too, and one that takes longer than the mirror's patience
// costs the leg. After every trigger bytes a goroutine has the kernel write back
// what is dirty; at limit bytes writers wait for it.
type writeback struct {
	trigger, limit int64         // see bound
	dirty          atomic.Int64  // written since the last round began
	kick           chan struct{} // one place
	over           chan struct{} // closed when the session is over
	once           sync.Once

	mu   sync.Mutex
	room sync.Cond // signalled when dirty fell or the session is over
}

func (w *writeback) init() {
	w.room.L = &w.mu
	w.kick, w.over = make(chan struct{}, 1), make(chan struct{})
}

// bound sets the limits in bytes, before the session is known to anyone. Without
// it nothing is counted.
func (w *writeback) bound(trigger, limit int64) {
	w.trigger, w.limit = trigger, max(limit, trigger)
}

// startWriteback starts the session's goroutine; it ends with the session. Each
// round counts as an I/O under way, so that draining waits for it too.
func (s *Session) startWriteback() {
	w := &s.writeback
	go func() {
		for {
			select {
			case <-w.over:
				return
			case <-w.kick:
			}
			if !s.gate.enter() {
				return
			}
			n := w.dirty.Load()
			if err := s.img.WriteBack(); err != nil {
				_ = s.fail("write back", err) // later I/O is told
			}
			w.done(n)
			s.gate.leave()
		}
	}()
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
	select {
	case w.kick <- struct{}{}:
	default: // asked for already
	}
}

// full says whether writers have to wait.
func (w *writeback) full() bool { return w.trigger > 0 && w.dirty.Load() >= w.limit }

func (w *writeback) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.dirty.Load() >= w.limit && !w.stopped() {
		w.room.Wait()
	}
}

func (w *writeback) stopped() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

func (w *writeback) done(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dirty.Add(-n) >= w.trigger { // more came meanwhile
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
	w.room.Broadcast()
}

// stop ends the goroutine and lets waiting writers go.
func (w *writeback) stop() {
	w.once.Do(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.over)
		w.room.Broadcast()
	})
}
