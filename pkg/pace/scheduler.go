package pace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options for New.
type Options struct {
	// Volumes is how many may copy at once; default 2.
	Volumes int
	// BytesPerSecond is how fast all of them together may copy; 0: as fast as
	// applications bear. Of what is only compared a quarter counts.
	BytesPerSecond int64
}

// Scheduler gives turns to the resyncs of one node.
type Scheduler struct {
	start time.Time

	mu   sync.Mutex
	plan *plan // Guarded by mu.

	pausing, copying Window
	watching         atomic.Pointer[Window] // one of the two, or nil
}

// New makes a scheduler.
func New(o Options) *Scheduler {
	if o.Volumes <= 0 {
		o.Volumes = 2
	}
	return &Scheduler{start: time.Now(), plan: newPlan(o)}
}

// Window is where requests that begin now are counted; nil while there is no
// resync. A nil Scheduler has none.
func (s *Scheduler) Window() *Window {
	if s == nil {
		return nil
	}
	return s.watching.Load()
}

// Step is what a mirror would copy next.
type Step struct {
	Volume volume.ID
	InSync int // replicas of the volume
}

// Turn is a step that was asked for.
type Turn struct {
	s     *Scheduler
	step  Step
	given chan int64    // bytes; has room for them
	poked chan struct{} // has room for one: there is a new phase

	began time.Duration // Guarded by Scheduler.mu.
	bytes int64         // Guarded by Scheduler.mu.
}

// Ask asks for a turn. Done must be called in the end. A volume that asks for the
// next one before it is done with the last one keeps its age.
func (s *Scheduler) Ask(step Step) *Turn {
	t := &Turn{s: s, step: step, given: make(chan int64, 1), poked: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan.ask(s.now(), t)
	s.pumpLocked()
	return t
}

// Wait waits for the turn, and returns how many bytes it is good for.
func (t *Turn) Wait(ctx context.Context) (bytes int64, err error) {
	var timer *time.Timer
	for {
		t.s.mu.Lock()
		again := t.s.pumpLocked()
		t.s.mu.Unlock()
		if timer == nil {
			timer = time.NewTimer(again)
			defer timer.Stop()
		} else {
			timer.Reset(again)
		}
		select {
		case bytes := <-t.given:
			return bytes, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-t.poked:
		case <-timer.C:
		}
	}
}

// Done tells that the step is over, or given up, and how many bytes it had. The
// second call does nothing.
func (t *Turn) Done(used int64) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.plan.done(t, used)
	t.s.pumpLocked()
}

func (s *Scheduler) now() time.Duration { return time.Since(s.start) }

// pumpLocked gives the turns whose time has come; after so long it is to be called
// again by somebody who waits.
func (s *Scheduler) pumpLocked() (again time.Duration) {
	before := s.plan.rate.phase
	given, again := s.plan.next(s.now(), measured{pausing: s.pausing.read(), copying: s.copying.read()})
	switch s.plan.rate.phase {
	case idle, draining, settling: // requests that meet what is left of a copy count for neither
		s.watching.Store(nil)
	case pausing:
		s.watching.Store(&s.pausing)
	case copying:
		s.watching.Store(&s.copying)
	}
	for _, t := range given {
		t.given <- t.bytes // has room for it
	}
	if s.plan.rate.phase != before {
		s.plan.poke()
	}
	return again
}
