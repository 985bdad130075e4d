package mirror

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/pace"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// resync is what the shell knows of one leg's resync: the turn that its next or
// present copy has, and, for the log, what was done so far.
//
// What must be prevented: a turn that nobody gives back. It is over when the copy
// is, when the machine does not want it any more, when the leg is dropped, and
// when the mirror ends; and the scheduler waits for none without end. The next
// turn is asked for before the last one is over, so that the volume keeps its
// place.
type resync struct {
	session  volume.Session
	began    time.Time
	compared int64 // bytes
	copied   int64 // bytes that differed
	// allocated is the target's regions that were no holes when the resync began, nil
	// if that was not asked for: with the others there is nothing to compare.
	allocated *bitmap.Set
	turn      *turn // nil without
}

// turn is one of the scheduler's.
type turn struct {
	*pace.Turn
	cancel context.CancelFunc // of the wait for it
}

// over gives the turn back; nil is nothing to give.
func (t *turn) over(used int64) {
	if t != nil {
		t.cancel()
		t.Done(used)
	}
}

// resyncs are the legs'.
type resyncs struct {
	mu  sync.Mutex
	leg [core.MaxLegs]resync // Guarded by mu.
}

// next notes a turn that was asked for in a session. It returns the last one.
func (r *resyncs) next(leg int, s volume.Session, t *turn) (last *turn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.leg[leg]
	last = l.turn
	l.of(s)
	if l.began.IsZero() {
		l.began = time.Now()
	}
	l.turn = t
	return last
}

// of has the leg's resync be one of a session, and forget one of another.
func (l *resync) of(s volume.Session) {
	if l.session != s {
		*l = resync{session: s}
	}
}

// target notes which regions of a leg are no holes, before anything is copied to it.
func (r *resyncs) target(leg int, s volume.Session, allocated *bitmap.Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leg[leg].of(s)
	r.leg[leg].allocated = allocated
}

// wasHole says whether a range of the target was one when its resync began.
func (r *resyncs) wasHole(leg int, s volume.Session, off, n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.leg[leg]
	if l.session != s || l.allocated == nil {
		return false
	}
	end := int((off + n + volume.RegionBytes - 1) / volume.RegionBytes)
	return end <= l.allocated.Len() && l.allocated.Next(int(off/volume.RegionBytes)) >= end
}

// take takes the leg's turn, if it belongs to the session.
func (r *resyncs) take(leg int, s volume.Session) *turn {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.leg[leg]
	if l.session != s {
		return nil
	}
	t := l.turn
	l.turn = nil
	return t
}

// waits says whether the leg has a turn, or waits for one.
func (r *resyncs) waits(leg int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leg[leg].turn != nil
}

// did adds to what was done in a session.
func (r *resyncs) did(leg int, s volume.Session, compared, copied int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := &r.leg[leg]; l.session == s {
		l.compared += compared
		l.copied += copied
	}
}

// finish returns what was done, once.
func (r *resyncs) finish(leg int) (done resync, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.leg[leg]
	done, ok = *l, !l.began.IsZero()
	l.began, l.allocated = time.Time{}, nil
	return done, ok
}

// askTurn has the machine's next copy to a leg wait for its turn.
func (m *Mirror) askTurn(a core.Action) {
	ctx, cancel := context.WithCancel(m.ctx)
	t := &turn{Turn: m.opt.Pace.Ask(pace.Step{Volume: m.opt.Volume, InSync: m.inSync()}), cancel: cancel}
	m.resyncs.next(a.Leg, a.Session, t).over(0)
	started := m.tasks.run(func() {
		bytes, err := t.Wait(ctx)
		wanted := false
		if err == nil {
			m.step(func(c *core.Machine) { wanted = c.Turn(a.Leg, a.Session, min(bytes, m.opt.CopyBytes)) })
		}
		if !wanted {
			t.over(0)
		}
	})
	if !started {
		t.over(0)
	}
}

// inSync is how many replicas are.
func (m *Mirror) inSync() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for i := range m.reps {
		if state, _ := m.core.LegState(i); state == volume.InSync {
			n++
		}
	}
	return n
}

// endTurns gives back what is left when the mirror ends.
func (m *Mirror) endTurns() {
	for i := range m.reps {
		m.resyncs.mu.Lock()
		s := m.resyncs.leg[i].session
		m.resyncs.mu.Unlock()
		m.resyncs.take(i, s).over(0)
	}
}

// logResyncs tells of resyncs that have ended well.
func (m *Mirror) logResyncs(v volume.Volume) {
	for i, r := range v.Status.Replicas {
		if r.State != volume.InSync {
			continue
		}
		if done, ok := m.resyncs.finish(i); ok {
			m.log.Info("replica resynced", "replica", r.Node, "comparedBytes", done.compared, "copiedBytes", done.copied,
				"took", time.Since(done.began).Round(time.Millisecond))
		}
	}
}
