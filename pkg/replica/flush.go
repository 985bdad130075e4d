package replica

import "sync"

// flusher makes flushes take turns, and those that wait share the next turn. A
// flush is answered by a sync that began after it was asked for.
//
// Turns are needed for safety, not only for speed: of two fsyncs at a time on one
// open file, only one is told of a write-back error, and the other would
// acknowledge what is lost. Here the second begins after the first has failed
// the session.
type flusher struct {
	mu   sync.Mutex
	turn sync.Cond
	// begun and ended count syncs. Invariant: ended <= begun <= ended+1. Guarded by mu.
	begun, ended uint64
	err          error // the first sync's that failed; sticky. Guarded by mu.
}

func (f *flusher) init() { f.turn.L = &f.mu }

func (f *flusher) flush(sync func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := f.begun + 1 // one that is under way may have begun too early
	for f.ended < want && f.err == nil {
		if f.begun > f.ended {
			f.turn.Wait()
			continue
		}
		f.begun++
		f.mu.Unlock()
		err := sync()
		f.mu.Lock()
		f.ended++
		if err != nil && f.err == nil {
			f.err = err
		}
		f.turn.Broadcast()
	}
	return f.err
}
