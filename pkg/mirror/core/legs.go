package core

import (
	"cmp"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// LegLost tells that a leg's connection broke, or its session was ended. It may
// come before Opened.
func (m *Machine) LegLost(leg int, s volume.Session, reason string) {
	l := &m.legs[leg]
	if l.session != s || l.phase == legDown {
		return
	}
	if l.phase == legOpening { // an idle leg would not be missed later
		l.broke = cmp.Or(reason, "its connection broke")
		return
	}
	m.legEnded(leg, Lost, reason)
	m.progress()
}

// legFailed gives a leg up. Until a swap that says so has succeeded, a counted
// leg stays counted, and so holds back every acknowledgement that it should
// have been part of.
//
// The last leg that is counted and up is never recorded as Outdated: it is the
// only one known to have everything. Without it nothing can be served, so the
// machine stops; the next opening finds it InSync in the store.
func (m *Machine) legFailed(leg int, res Result, reason string) {
	l := &m.legs[leg]
	wasReadable := m.readable()
	m.closeLeg(leg)
	l.reopenAt = m.now + l.backoff
	switch {
	case m.phase >= Releasing:
		return
	case m.phase == Fencing, m.phase == Reading:
		// Others may still come; the last answer decides what was reached.
		l.want, l.reason = volume.Outdated, reason
		return
	case m.counted.has(leg) && wasReadable&^bit(leg) == 0 && m.phase == Recording:
		m.giveUp(Lost, "the last InSync replica was lost while opening: "+reason)
		return
	case m.counted.has(leg) && wasReadable&^bit(leg) == 0 && !m.othersMayServe(leg, res) && !mutant.On("drop-last-leg"):
		m.lastLegFailed(leg, res, reason)
		return
	case res == Broken:
		l.want = volume.Failed
	case l.want != volume.Failed:
		l.want = volume.Outdated
	}
	l.reason = reason
	if m.growing != 0 { // once all have grown the store may say so already: there is no way back
		m.endGrow(Lost, "a replica was lost while growing: "+reason)
	}
	m.forgetLeg(leg)
	m.maybeSwap()
}

// lastLegFailed leaves the store's word for the leg as it is.
func (m *Machine) lastLegFailed(leg int, res Result, reason string) {
	if res != Fenced {
		res = Broken
	}
	m.stop(res, "the last InSync replica was lost: "+reason)
}

// forgetLeg takes a leg out of all that was sent to it. Reads go elsewhere;
// changes and flushes that still need it stay unanswered until it is uncounted.
func (m *Machine) forgetLeg(leg int) {
	for _, op := range slices.Clone(m.inflight) {
		if !op.targets.has(leg) {
			continue
		}
		op.targets &^= bit(leg)
		op.retry &^= bit(leg)
		op.starved &^= bit(leg)
		switch op.Kind {
		case Read:
			if !op.replied {
				m.forget(op)
				op.waiting = true
				m.waiting = slices.Insert(m.waiting, 0, op)
			}
		case Probe, copyRange:
			op.replied = true
			m.forget(op)
		case correct:
			op.again = op.again || m.legs[leg].rejoinBy != 0 // it stays InSync
			m.corrected(op)
		default:
			m.settle(op)
		}
	}
	for _, op := range slices.Clone(m.waiting) {
		if op.Kind == copyRange && op.own == leg {
			m.waiting = slices.DeleteFunc(m.waiting, func(p *Op) bool { return p == op })
		}
	}
}

// uncount: a swap that calls the leg something else than InSync has succeeded.
// Nothing under way needs it any more, not even if it is counted again, rebuilt,
// before that is answered.
func (m *Machine) uncount(leg int) {
	m.counted &^= bit(leg)
	if !several(m.counted) {
		m.dirty, m.dirtyLeft = nil, 0 // one leg has nothing to differ from
	}
	for _, op := range slices.Clone(m.inflight) {
		op.need &^= bit(leg)
		m.settle(op)
	}
}

// judgeSilence gives up legs that were asked and say nothing. While an
// operation waits, a leg that has been quiet for a quarter of the patience is
// asked a small read, so that a slow flush is not taken for a dead peer. Legs are given up only while another one has just answered: when
// all are silent it is this node that is cut off, or all of them, and guessing
// would not help.
func (m *Machine) judgeSilence() {
	if m.phase != Serving && m.phase != Draining && m.phase != Flushing {
		return
	}
	var silent, heard mask
	for i := range m.legs {
		l := &m.legs[i]
		if l.phase != legUp {
			continue
		}
		oldest := m.oldestUnanswered(i)
		quiet := m.now - max(l.heard, oldest)
		switch {
		case oldest >= 0 && (m.now-oldest >= m.cfg.OpPatience || quiet >= m.cfg.Patience):
			silent |= bit(i)
			continue
		case oldest < 0: // nothing asked
			quiet = 0
		}
		heard |= bit(i)
		if !l.local && !l.probing && quiet >= m.cfg.Patience/4 {
			m.sendProbe(i)
		}
	}
	if heard&m.readable() == 0 {
		return
	}
	for i := range m.legs {
		if silent.has(i) && m.phase != Stopped {
			m.legFailed(i, Lost, "it did not answer in time")
		}
	}
}

func (m *Machine) sendProbe(i int) {
	m.legs[i].probing, m.legs[i].probed = true, m.now
	m.seq++
	op := &Op{Kind: Probe, seq: m.seq, targets: bit(i), sent: m.now, asked: m.clock, own: i}
	m.emit(Action{Kind: Send, Leg: i, Session: m.legs[i].session, Op: op})
}

// oldestUnanswered is the tick of the oldest sending that the leg owes an
// answer to, or -1. A copy counts for its target, even if its source is slow:
// changes wait for it, and giving up a rebuild costs little.
func (m *Machine) oldestUnanswered(leg int) int64 {
	oldest := int64(-1)
	l := &m.legs[leg]
	if l.probing {
		oldest = l.probed
	}
	if l.confirming && (oldest < 0 || l.confirmed < oldest) {
		oldest = l.confirmed
	}
	for _, op := range m.inflight {
		if op.targets.has(leg) && !op.done.has(leg) && !op.retry.has(leg) && (oldest < 0 || op.sent < oldest) {
			oldest = op.sent
		}
	}
	return oldest
}
