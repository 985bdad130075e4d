package core

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Submit takes one operation. Its Reply comes as an action, now or later.
func (m *Machine) Submit(op *Op) {
	m.seq++
	*op = Op{Kind: op.Kind, Off: op.Off, Len: op.Len, User: op.User, seq: m.seq, arrived: m.clock, own: -1}
	if m.phase >= Draining {
		m.reply(op, m.refusal())
		return
	}
	if op.Kind == Read && m.phase == Serving {
		m.renewLease()
	}
	if m.phase != Serving || m.mustWait(op, len(m.waiting)) {
		op.waiting = true
		m.waiting = append(m.waiting, op)
		return
	}
	m.dispatch(op)
}

func (m *Machine) refusal() Result {
	if m.failing != OK {
		return m.failing
	}
	return Refused
}

// mustWait says whether op may not be sent now, looking at what is under way
// and at the first n that wait.
//
// A change waits for any change, copy or waiting change that it overlaps (two
// overlapping changes could reach two legs in different orders). A read waits
// for a change that it overlaps, and a change for a read: the read could see
// bytes that a failover then takes back. Reads also wait while the machine has no
// lease: another holder may be writing elsewhere; while what they read is dirty; and for a correction under way, which may yet bring what a
// source had that is gone, although nothing is dirty any more. A flush waits for nothing: it promises only what was answered before it.
func (m *Machine) mustWait(op *Op, n int) bool {
	if op.Kind == Flush {
		return false
	}
	if op.Kind == Read && (m.readable() == 0 || !m.leased(op) || m.isDirty(op)) {
		return true
	}
	if op.Kind.isCopy() && (m.readable() == 0 || op.Kind == correct && m.rejoining() != 0) {
		return true
	}
	for _, p := range m.inflight {
		switch {
		case !p.overlaps(op),
			mutant.On("copy-without-lock") && (p.Kind.isCopy() || op.Kind.isCopy()),
			mutant.On("changes-overtake-rebuild") && p.Kind == Change && p.replied,
			mutant.On("changes-overtake") && p.Kind == Change && op.Kind == Change,
			mutant.On("read-unacknowledged") && p.Kind == Change && op.Kind == Read:
			continue
		}
		if p.Kind == Change || op.Kind == Change && p.Kind != Flush || p.Kind == correct && op.Kind == Read {
			return true
		}
	}
	for _, p := range m.waiting[:n] {
		if p.Kind == Change && p.overlaps(op) || p.Kind.isCopy() && op.Kind == Change && p.overlaps(op) {
			return true
		}
	}
	return false
}

// readable is the legs that a read may go to: recorded InSync, counted and up.
func (m *Machine) readable() mask {
	r := m.upAndCounted()
	for i := range m.legs {
		if l := &m.legs[i]; r.has(i) && (l.recorded != volume.InSync || l.want != volume.InSync) {
			r &^= bit(i)
		}
	}
	return r
}

// dispatch sends op to its legs.
func (m *Machine) dispatch(op *Op) {
	op.waiting = false
	op.sent, op.asked = m.now, m.clock
	m.inflight = append(m.inflight, op)
	switch op.Kind {
	case Read:
		m.sendRead(op)
	case Change:
		// Rebuilding legs get every change too.
		op.need = m.counted
		op.targets = m.up
		m.written = true
		if mutant.On("rebuild-misses-writes") {
			op.targets = m.upAndCounted()
		}
		m.sendAll(op)
	case Flush:
		op.need = m.counted
		op.targets = m.upAndCounted()
		m.sendAll(op)
		if op.targets == 0 {
			m.settle(op)
		}
	}
}

// sendAll sends to remote legs first: the local one may be served by the very
// call that sends, and the others work meanwhile.
func (m *Machine) sendAll(op *Op) {
	for _, local := range [...]bool{false, true} {
		for i := range m.legs {
			if op.targets.has(i) && m.legs[i].local == local {
				m.emit(Action{Kind: Send, Leg: i, Session: m.legs[i].session, Op: op})
			}
		}
	}
}

// sendRead chooses a leg: the local one, else the readable ones in turn.
func (m *Machine) sendRead(op *Op) {
	r := m.readable()
	pick := -1
	for k := range m.legs {
		i := (m.nextRead + k) % len(m.legs)
		if r.has(i) && (pick < 0 || m.legs[i].local && !m.legs[pick].local) {
			pick = i
		}
	}
	m.nextRead = (pick + 1) % len(m.legs)
	op.targets, op.done = bit(pick), 0
	m.emit(Action{Kind: Send, Leg: pick, Session: m.legs[pick].session, Op: op})
}

// Answer brings a leg's answer to a Send. Answers of an older session than the
// leg's, or after it was dropped, change nothing.
func (m *Machine) Answer(leg int, s volume.Session, op *Op, res Result) {
	l := &m.legs[leg]
	if l.session != s || l.phase != legUp || !op.targets.has(leg) {
		return
	}
	if res == OK {
		l.proven = max(l.proven, op.asked)
		if mutant.On("prove-late") {
			l.proven = m.clock
		}
	}
	if op.Kind == Confirm {
		m.confirmed(leg, res)
		return
	}
	l.heard = m.now
	if op.Kind == Probe {
		l.probing = false
		if res != OK {
			m.legEnded(leg, res, "a probe failed: "+res.meaning())
			m.progress()
		}
		return
	}
	switch {
	case res == OK, res == NoSpace && mutant.On("no-space-is-written"):
		op.done |= bit(leg)
		op.starved &^= bit(leg)
		m.settle(op)
	case res == NoSpace && op.Kind == Change:
		m.noSpace(leg, op)
	case res == Refused:
		// The request is at fault, not the leg. The shell checks requests before
		// it submits them, so a leg that refuses one disagrees about the volume.
		m.legFailed(leg, Broken, "it refused a request that is valid")
	default:
		m.legEnded(leg, res, op.Kind.String()+" failed: "+res.meaning())
	}
	if len(m.waiting) > 0 || op.own >= 0 || !m.quiet() {
		m.progress()
	}
}

// quiet says whether answers can't move anything but their own operation: the
// common case, kept cheap.
func (m *Machine) quiet() bool {
	return m.phase == Serving && !m.swapping && !m.doubt && m.cycle.step == cycleIdle && m.dirtyLeft == 0 && m.upAndCounted() == m.all()
}

// settle replies to op when every leg that it needs has answered, and forgets it
// when every leg that it was sent to has.
func (m *Machine) settle(op *Op) {
	switch op.Kind {
	case Read:
		if op.done != 0 && !op.replied {
			m.reply(op, OK)
		}
	case Change, Flush:
		need := m.needs(op)
		if mutant.On("ack-before-store") {
			need &= m.up
		}
		if !op.replied && need&^op.done == 0 {
			m.reply(op, OK)
			if op.Kind == Flush && op.own >= 0 {
				m.flushedForPromotion(op)
				m.flushedForCycle(op)
			}
		}
	}
	if op.replied && op.targets&^op.done == 0 {
		m.forget(op)
	}
}

func (m *Machine) forget(op *Op) {
	if i := slices.Index(m.inflight, op); i >= 0 {
		last := len(m.inflight) - 1
		m.inflight[i] = m.inflight[last]
		m.inflight[last] = nil
		m.inflight = m.inflight[:last]
	}
}

func (m *Machine) reply(op *Op, res Result) {
	if op.replied {
		return
	}
	op.replied = true
	if op.own >= 0 {
		return // the machine's own
	}
	m.emit(Action{Kind: Reply, Op: op, Result: res})
}

// dispatchWaiting sends what may go now, in order of arrival.
func (m *Machine) dispatchWaiting() {
	if m.phase != Serving && m.phase != Draining || m.counted == 0 && !mutant.On("promise-before-taken") {
		return // without the epoch there is no leg to ask: an opening that was closed at once promises nothing
	}
	kept := 0
	for i := 0; i < len(m.waiting); i++ {
		op := m.waiting[i]
		if m.mustWait(op, kept) {
			m.waiting[kept] = op
			kept++
			continue
		}
		m.dispatchOrCopy(op)
	}
	clear(m.waiting[kept:])
	m.waiting = m.waiting[:kept]
}

func (m *Machine) dispatchOrCopy(op *Op) {
	switch op.Kind {
	case copyRange:
		m.beginCopy(op)
	case correct:
		m.beginCorrection(op)
	default:
		m.dispatch(op)
	}
}

// noSpace keeps a change waiting for space on a leg that its reply needs. One
// that the leg was only given because it is rebuilt must not hold the volume up,
// and may have been replied to, even if the leg is counted by now: the rebuild is
// given up.
func (m *Machine) noSpace(leg int, op *Op) {
	if !op.need.has(leg) {
		m.legFailed(leg, NoSpace, "its pool is full")
		return
	}
	op.retry |= bit(leg)
	op.starved |= bit(leg)
	m.paused = true
	m.maybeSwap()
}

// resendNoSpace asks again the legs that had no space.
func (m *Machine) resendNoSpace() {
	if !m.paused {
		return
	}
	m.paused = false
	for _, op := range m.inflight {
		if op.starved == 0 {
			continue
		}
		m.paused = true
		if op.retry == 0 {
			continue
		}
		op.sent = m.now
		for i := range m.legs {
			if op.retry.has(i) && m.up.has(i) {
				m.emit(Action{Kind: Send, Leg: i, Session: m.legs[i].session, Op: op})
			}
		}
		op.retry = 0
	}
}
