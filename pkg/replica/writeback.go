package replica

import (
	"sync"
	"sync/atomic"
	"time"
)

// writeback keeps what a flush still has to write small: a flush stalls the
// whole export, reads too, and one that takes longer than the mirror's patience
// costs the leg. After every trigger bytes a round, in the background, has the kernel
// write back what is dirty; at limit bytes writers wait for it. How fast the rounds
// are says how much that may be: see dirtBound.
type writeback struct {
	written atomic.Int64 // bytes, ever
	clean   atomic.Int64 // the first so many of them are not dirty any more. Invariant: <= written
	trigger atomic.Int64 // bytes; 0: nothing is counted
	limit   atomic.Int64 // bytes
	begin   func()       // has a round run, elsewhere
	running atomic.Bool  // a round runs, or is about to
	over    atomic.Bool  // the session is over

	mu    sync.Mutex
	bound dirtBound // Guarded by mu.
	room  sync.Cond // signalled when less is dirty, more may be, or the session is over
}

func (w *writeback) init(begin func()) { w.room.L, w.begin = &w.mu, begin }

// start has bytes be counted, before the session is known to anyone.
func (w *writeback) start(b dirtBound) {
	w.bound = b
	w.trigger.Store(b.trigger())
	w.limit.Store(b.limit())
}

// writeBackRound counts as an I/O under way, so that draining waits for it too.
func (s *Session) writeBackRound() {
	if !s.gate.enter() {
		return
	}
	defer s.gate.leave()
	upTo, n := s.writeback.mark()
	began := s.server.opts.Background.Now()
	if err := s.img.WriteBack(); err != nil {
		_ = s.fail("write back", err) // later I/O is told
	}
	s.writeback.done(upTo, n, s.server.opts.Background.Now().Sub(began))
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
	trigger := w.trigger.Load()
	if trigger == 0 || w.written.Add(n)-w.clean.Load() < trigger {
		return
	}
	w.kick()
}

func (w *writeback) kick() {
	if !w.over.Load() && w.running.CompareAndSwap(false, true) {
		w.begin()
	}
}

// dirty is how many bytes are. Overwritten ones count each time.
func (w *writeback) dirty() int64 {
	clean := w.clean.Load() // first: it never overtakes written
	return w.written.Load() - clean
}

// full says whether writers have to wait.
func (w *writeback) full() bool { return w.trigger.Load() > 0 && w.dirty() >= w.limit.Load() }

func (w *writeback) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.full() && !w.over.Load() {
		w.room.Wait()
	}
}

// mark is what has been written up to now, and how much of it is dirty.
func (w *writeback) mark() (upTo, dirty int64) {
	clean := w.clean.Load()
	upTo = w.written.Load()
	return upTo, upTo - clean
}

// done ends a round that wrote n bytes, the last of those up to a mark.
func (w *writeback) done(upTo, n int64, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound.wrote(n, took)
	w.trigger.Store(w.bound.trigger())
	w.limit.Store(w.bound.limit())
	w.running.Store(false)
	w.cleanedLocked(upTo)
	if w.dirty() >= w.trigger.Load() { // more came meanwhile
		w.kick()
	}
}

// synced: what was written up to a mark is durable.
func (w *writeback) synced(upTo int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cleanedLocked(upTo)
}

func (w *writeback) cleanedLocked(upTo int64) {
	w.clean.Store(max(w.clean.Load(), upTo))
	w.room.Broadcast()
}

// stop lets waiting writers go.
func (w *writeback) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over.Store(true)
	w.room.Broadcast()
}
