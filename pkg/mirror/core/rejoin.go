package core

import (
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// An InSync leg whose session was lost is not given up at once: a replica's
// process that is restarted comes back within moments, and has everything that it
// was asked to write before. So for a while the leg stays counted, which holds all
// acknowledgements and reads back, and is opened again as a new session. What it
// has not answered is sent to it once more. Two things must be prevented.
//
// The replica forgot. Its node lost its power, and with it what was acknowledged
// and not flushed; taken back, the next flush would promise what is not there. So a
// replica presents its incarnation, which ends with its node's memory. If that
// changed the leg is Outdated, and returns by a resync.
//
// A write lands twice. The replica ends the old session, and what it has of it,
// before it opens the new one; the shell answers what was under way on the old
// one before it opens the leg again. No two changes that are under way overlap, so
// carrying one out again changes nothing.
//
// The incarnation is asked for at an opening, too, after an unclean close: of the replicas that
// were reached those that have the incarnation that the store has noted for the
// last opening have all that was acknowledged in it. If there is one, those that
// have not are Outdated.
//
// A leg that has just come back and is lost again is not waited for a second time,
// for it may be lost for ever so: to a block that it can't read, say, which another
// one can.

// retries is how often a leg is tried to be opened while it is waited for.
const retries = 16

// legEnded gives a leg up, or waits for it to come back.
func (m *Machine) legEnded(leg int, res Result, reason string) {
	l := &m.legs[leg]
	serving := m.phase == Serving || m.phase == Draining || m.phase == Flushing
	inSync := m.counted.has(leg) && l.recorded == volume.InSync && l.want == volume.InSync
	if m.cfg.Rejoin == 0 || !serving || !inSync || l.phase != legUp || l.incarnation == "" || res != Lost && res != Fenced || m.now < l.provenAt {
		m.legFailed(leg, res, reason)
		return
	}
	m.closeLeg(leg)
	l.reason = reason
	l.rejoinBy = m.now + m.cfg.Rejoin
	if m.growing != 0 {
		m.endGrow(Lost, "a replica was lost while growing: "+reason)
	}
	m.forgetLeg(leg)
	m.openLeg(leg)
}

// Rejoining says whether an InSync leg that was lost is waited for, and which
// incarnation must come back.
func (m *Machine) Rejoining(leg int) (volume.Incarnation, bool) {
	l := &m.legs[leg]
	return l.incarnation, l.rejoinBy != 0
}

// rejoining is the legs that are waited for.
func (m *Machine) rejoining() mask {
	var s mask
	for i := range m.legs {
		if m.legs[i].rejoinBy != 0 {
			s |= bit(i)
		}
	}
	return s
}

// rejoined brings the answer to one attempt; the leg is up if that is OK. A leg
// that can't be taken back is given up at once if another one is there, or if no
// other one may come.
func (m *Machine) rejoined(leg int, o Opening) {
	l := &m.legs[leg]
	alone := m.readable()&^bit(leg) == 0 && m.rejoining()&^bit(leg) != 0
	switch {
	case o.Result == OK && (l.incarnation == o.Incarnation || mutant.On("ignore-incarnation")):
		l.rejoinBy, l.reason, l.provenAt = 0, "", m.now+m.cfg.Rejoin
		m.resend(leg)
		return
	case o.Result == OK && alone:
		by := l.rejoinBy
		m.closeLeg(leg)
		l.rejoinBy, l.reason = by, restarted
	case o.Result == OK:
		m.legFailed(leg, Lost, restarted)
		return
	case o.Result == Fenced, o.Result == Broken && !alone:
		m.legFailed(leg, o.Result, o.Reason)
		return
	}
	l.reopenAt = m.now + max(1, m.cfg.Rejoin/retries)
}

const restarted = "its node was restarted: what was not flushed may be gone"

// resend sends to a leg that came back what it has not answered.
func (m *Machine) resend(leg int) {
	for _, op := range m.inflight {
		if (op.Kind != Change && op.Kind != Flush) || !op.need.has(leg) || op.done.has(leg) || mutant.On("rejoin-without-resending") {
			continue
		}
		op.targets |= bit(leg)
		op.sent = m.now
		m.emit(Action{Kind: Send, Leg: leg, Session: m.legs[leg].session, Op: op})
	}
}

// awaitRejoins opens legs that are waited for again, and gives those up that do
// not come: but only while another one is there, or when none may come any more.
func (m *Machine) awaitRejoins() {
	for i := range m.legs {
		l := &m.legs[i]
		if l.rejoinBy == 0 || m.phase == Stopped {
			continue
		}
		if m.now >= l.rejoinBy && (m.othersAnswer(i) || m.readable() == 0 && !m.mayComeBack()) {
			m.legFailed(i, Lost, l.reason)
			continue
		}
		if l.phase == legDown && m.now >= l.reopenAt {
			m.openLeg(i)
		}
	}
}

// othersAnswer says whether another readable leg has answered since this one was
// lost: it may only look alive. One that has not is asked.
func (m *Machine) othersAnswer(leg int) bool {
	lost := m.legs[leg].rejoinBy - m.cfg.Rejoin
	answers := false
	for i := range m.legs {
		l := &m.legs[i]
		switch {
		case !m.readable().has(i):
		case l.local, l.heard > lost:
			answers = true
		case !l.probing:
			m.sendProbe(i)
		}
	}
	return answers
}

// othersMayServe says whether the volume can go on without a leg that is given up
// while no other one is readable: those that are waited for have everything, and
// this one either is not InSync yet, or is no good any more.
func (m *Machine) othersMayServe(leg int, res Result) bool {
	return m.rejoining() != 0 && (m.legs[leg].recorded != volume.InSync || res == Broken)
}

// mayComeBack says whether any leg that is waited for has time left.
func (m *Machine) mayComeBack() bool {
	for i := range m.legs {
		if m.legs[i].rejoinBy > m.now {
			return true
		}
	}
	return false
}

// forgetRestarted makes those of the reached replicas Outdated that may have
// forgotten what was acknowledged, if others have not.
func (m *Machine) forgetRestarted() {
	var kept mask
	for i := range m.legs {
		if l := &m.legs[i]; m.upAndCounted().has(i) && l.kept != "" && l.kept == l.incarnation {
			kept |= bit(i)
		}
	}
	if m.wasClean || kept == 0 || mutant.On("trust-restarted") {
		return
	}
	for i := range m.legs {
		if m.upAndCounted().has(i) && !kept.has(i) {
			m.legs[i].want, m.legs[i].reason = volume.Outdated, restarted
			m.closeLeg(i)
		}
	}
}
