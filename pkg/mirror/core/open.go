package core

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Start begins the opening: it takes a new epoch by compare-and-swap.
func (m *Machine) Start() {
	m.swapping = true
	m.swapped = Wants{Take: true}
	m.emit(Action{Kind: Swap, Change: &m.swapped})
}

// Taken is the status that the swap that took the epoch found and left.
type Taken struct {
	States  []volume.ReplicaState // by leg
	Reasons []string
	Changes []uint64 // volume.Replica.Change; nil means all 0
	// Incarnations of volume.Replica; nil means that none is known.
	Incarnations []volume.Incarnation
	Size         int64
	WasClean     bool // Clean before the swap
	Paused       bool
}

// TakeDone answers the first Swap. OK brings what the store says; anything else
// ends the opening with nothing taken, or taken in doubt: the holder's nonce
// lets the shell tell.
func (m *Machine) TakeDone(res Result, t Taken) {
	m.swapping = false
	if m.phase == Stopped {
		return
	}
	if res != OK {
		m.stop(res, "the epoch was not taken")
		return
	}
	m.size, m.wasClean = t.Size, t.WasClean
	for i := range m.legs {
		l := &m.legs[i]
		l.recorded, l.want, l.reason = t.States[i], t.States[i], t.Reasons[i]
		if t.Changes != nil {
			l.change = t.Changes[i]
		}
		if t.Incarnations != nil {
			l.kept = t.Incarnations[i]
		}
		if l.recorded == volume.InSync {
			m.counted |= bit(i)
		}
	}
	m.landed = m.wants()
	m.landed.Paused = t.Paused
	if m.phase == Draining { // closed meanwhile
		m.giveUp(Refused, "closed while opening")
		m.progress()
		return
	}
	m.phase = Fencing
	if m.counted == 0 {
		m.giveUp(Broken, "no replica is InSync")
		m.progress()
		return
	}
	for i := range m.legs {
		if m.counted.has(i) {
			m.openLeg(i)
		}
	}
}

func (m *Machine) openLeg(i int) {
	l := &m.legs[i]
	l.phase, l.broke = legOpening, ""
	l.session++
	l.opened = m.clock
	m.emit(Action{Kind: Open, Leg: i, Session: l.session, Size: m.size})
}

// Opening is how an attempt to open a leg ended. OK means that the replica
// persisted the epoch and session, refuses every older one, and is at least as
// large as asked; then Incarnation says since when it has forgotten nothing.
type Opening struct {
	Result      Result
	Reason      string
	Incarnation volume.Incarnation
}

// Opened answers Open.
func (m *Machine) Opened(leg int, s volume.Session, o Opening) {
	l := &m.legs[leg]
	if l.session != s || l.phase != legOpening {
		if o.Result == OK { // given up while it was being opened
			m.emit(Action{Kind: Drop, Leg: leg, Session: s})
		}
		return
	}
	if o.Result == OK && l.broke != "" {
		m.emit(Action{Kind: Drop, Leg: leg, Session: s})
		o = Opening{Result: Lost, Reason: l.broke}
	}
	if o.Result == OK {
		l.phase, l.heard, l.proven = legUp, m.now, l.opened
		m.up |= bit(leg)
	} else {
		l.phase = legDown
	}
	if o.Result == OK && l.rejoinBy == 0 {
		l.incarnation = o.Incarnation
	}
	switch {
	case m.phase == Fencing:
		m.openedAtStart(leg, o.Result, o.Reason)
	case l.rejoinBy != 0:
		m.rejoined(leg, o)
	case o.Result == OK:
		m.startResync(leg)
	default:
		m.laterReopen(leg, o.Result, o.Reason)
	}
	m.progress()
}

// openedAtStart collects the answers of the fence, and decides with the last.
func (m *Machine) openedAtStart(leg int, res Result, reason string) {
	l := &m.legs[leg]
	switch res {
	case OK:
		m.fenced(leg)
	case Fenced:
		if mutant.On("bump-past-newer") {
			l.want, l.reason = volume.Outdated, reason
			break
		}
		// The replica has seen a newer epoch than the store gave: the store went
		// back in time, or another opening overtook this one. Never bump past it.
		m.failing, m.failedFor = Fenced, reason
	case Broken:
		l.want, l.reason = volume.Failed, reason
	default:
		l.want, l.reason = volume.Outdated, reason
	}
	for i := range m.legs {
		if m.legs[i].phase == legOpening {
			return
		}
	}
	reached := m.up & m.counted
	switch {
	case m.failing != OK:
		m.giveUp(m.failing, m.failedFor)
		return
	case reached == 0:
		m.giveUp(Lost, "no InSync replica could be reached: "+reason)
		return
	}
	m.forgetRestarted()
	if reached = m.upAndCounted(); !m.wasClean && several(reached) && !mutant.On("trust-unclean") {
		m.readIntents(reached)
		return
	}
	m.record()
}

// record has the store told what was not reached.
func (m *Machine) record() {
	m.phase = Recording
	m.maybeSwap()
	m.maybeServe()
}

func (m *Machine) serve() {
	m.phase = Serving
	m.written = true // the last holder may have left intent bits
	m.cycle.at = m.now + m.cfg.Settle
	for i := range m.legs {
		m.legs[i].reopenAt = m.now
		m.legs[i].backoff = m.cfg.Reopen
	}
	m.emit(Action{Kind: Serve, Size: m.size})
	m.reopen()
}

// giveUp ends an opening that has the epoch: nothing was served, so the states
// stay as they were found, and the volume is released.
func (m *Machine) giveUp(res Result, reason string) {
	m.failing, m.failedFor = res, reason
	for i := range m.legs {
		l := &m.legs[i]
		l.want = l.recorded
		l.incarnation = "" // the next opening judges who has forgotten; this one has not
		m.closeLeg(i)
	}
	m.up = 0
	m.dirty, m.dirtyLeft = nil, 0
	m.phase = Releasing
	m.release, m.clean = true, m.wasClean
}

// stop ends everything at once: what is under way is answered with res.
func (m *Machine) stop(res Result, reason string) {
	if m.phase == Stopped {
		return
	}
	m.phase = Stopped
	m.failing, m.failedFor = res, reason
	for i := range m.legs {
		m.closeLeg(i)
	}
	ops := append(m.inflight, m.waiting...)
	m.inflight, m.waiting, m.correcting = nil, nil, nil
	m.dirty, m.dirtyLeft = nil, 0
	for _, op := range ops {
		m.reply(op, res)
	}
	if m.growTo != 0 {
		m.endGrow(res, reason)
	}
	m.emit(Action{Kind: Stop, Result: res, Reason: reason})
}

// closeLeg ends a leg's session, if it has one; its recorded state and whether
// it is counted do not change by that.
func (m *Machine) closeLeg(i int) {
	l := &m.legs[i]
	l.rejoinBy = 0
	if l.phase == legDown {
		return
	}
	if l.phase == legUp {
		m.emit(Action{Kind: Drop, Leg: i, Session: l.session})
	}
	// A leg that is still opening is dropped by Opened, which finds it down.
	l.phase = legDown
	l.probing, l.confirming = false, false
	l.step, l.copier, l.delta, l.turn = stepNone, nil, nil, 0
	m.up &^= bit(i)
	m.giveUpCycle()
	m.unask(i)
}

// String tells the state in one line, for logs and scenario tests.
func (m *Machine) String() string {
	s := fmt.Sprintf("%s size=%d inflight=%d waiting=%d", m.phase, m.size, len(m.inflight), len(m.waiting))
	for i := range m.legs {
		l := &m.legs[i]
		s += fmt.Sprintf(" [%d %s %s", i, l.recorded, l.phase)
		if l.want != l.recorded {
			s += fmt.Sprintf(" want=%s", l.want)
		}
		if m.counted.has(i) {
			s += " counted"
		}
		if l.rejoinBy != 0 {
			s += " rejoining"
		}
		if l.step != stepNone {
			s += fmt.Sprintf(" resync=%s@%d", l.step, l.cursor)
		}
		s += "]"
	}
	if m.frozen() && m.phase == Serving {
		s += " frozen"
	}
	if m.paused {
		s += " paused"
	}
	if m.dirtyLeft > 0 {
		s += fmt.Sprintf(" dirty=%d", m.dirtyLeft)
	}
	if m.cycle.step != cycleIdle {
		s += " clearing=" + m.cycle.step.String()
	}
	return s
}
