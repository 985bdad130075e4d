package core

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A rebuild makes an Outdated replica equal again: every byte is copied from an
// InSync leg while the volume goes on. The following must be prevented: the copy
// reads a block, the application overwrites it, the copy writes the old block
// over it. So a copy holds its range from before the read until the write was
// answered, and since the leg came up it gets every change, whether its place
// was copied already or not.
//
// Promotion, in this order: nothing is left to copy; the leg is counted, so that
// every later acknowledgement needs it; all that was sent before that is
// answered; the leg's own flush is answered; only then the swap.

// reopen opens the replicas that are to be rebuilt, when it is time.
func (m *Machine) reopen() {
	if m.phase != Serving || m.growTo != 0 {
		return
	}
	for i := range m.legs {
		l := &m.legs[i]
		if l.phase == legDown && !m.counted.has(i) && l.recorded != volume.Failed && l.want != volume.Failed && m.now >= l.reopenAt {
			m.openLeg(i)
		}
	}
}

func (m *Machine) laterReopen(leg int, res Result, reason string) {
	l := &m.legs[leg]
	l.backoff = min(max(2*l.backoff, m.cfg.Reopen), 16*m.cfg.Reopen)
	l.reopenAt = m.now + l.backoff
	if res == Broken {
		l.want, l.reason = volume.Failed, reason
	}
}

// startRebuild: the leg is up, with a fresh session, and gets every change from
// now on.
func (m *Machine) startRebuild(leg int) {
	l := &m.legs[leg]
	if m.phase != Serving {
		m.closeLeg(leg)
		return
	}
	l.backoff = m.cfg.Reopen
	l.cursor, l.step = 0, stepCopy
	l.want = volume.Rebuilding
	// A change already under way was not sent to this leg. The copies wait for
	// it, as every copy does for what it overlaps, so they read its bytes.
}

// advanceRebuilds does the next step of each rebuild.
func (m *Machine) advanceRebuilds() {
	if m.phase != Serving {
		return
	}
	for i := range m.legs {
		l := &m.legs[i]
		switch l.step {
		case stepCopy:
			m.nextCopy(i)
		case stepDrain:
			m.drained(i)
		}
	}
}

// nextCopy queues the next range, or counts the leg when there is none.
func (m *Machine) nextCopy(leg int) {
	l := &m.legs[leg]
	if l.copier != nil {
		return
	}
	if l.cursor >= m.size || mutant.On("copy-misses-the-end") && l.cursor > 0 {
		if !mutant.On("promote-uncounted") {
			m.counted |= bit(leg)
		}
		m.seq++
		l.mark, l.step = m.seq, stepDrain
		m.drained(leg)
		return
	}
	m.seq++
	op := &Op{Kind: copyRange, Off: l.cursor, Len: min(m.cfg.CopyBytes, m.size-l.cursor), seq: m.seq, own: leg}
	l.copier = op
	if m.mustWait(op, len(m.waiting)) {
		op.waiting = true
		m.waiting = append(m.waiting, op)
		return
	}
	m.beginCopy(op)
}

func (m *Machine) beginCopy(op *Op) {
	op.waiting = false
	op.targets = bit(op.own)
	m.inflight = append(m.inflight, op)
	op.sent = m.now
	op.src = m.copySource()
	op.srcSession = m.legs[op.src].session
	m.emit(Action{Kind: Copy, Leg: op.own, Session: m.legs[op.own].session, Src: op.src, SrcSession: op.srcSession, Op: op})
}

// copySource prefers the local leg. There is always one: a machine without a
// readable leg has stopped.
func (m *Machine) copySource() int {
	r, pick := m.readable(), -1
	for i := range m.legs {
		if r.has(i) && (pick < 0 || m.legs[i].local && !m.legs[pick].local) {
			pick = i
		}
	}
	return pick
}

// Copied answers Copy. source tells that it was the source that failed: the
// range is copied again, from whichever leg is readable then. A source that
// can't read one range is not given up for it, but one whose session is over is.
func (m *Machine) Copied(leg int, s volume.Session, op *Op, res Result, source bool) {
	l := &m.legs[leg]
	if l.session != s || l.phase != legUp || l.copier != op {
		return
	}
	l.copier = nil
	op.replied = true
	m.forget(op)
	switch {
	case res == OK:
		l.heard = m.now
		l.cursor = op.Off + op.Len
	case source: // again, by advanceRebuilds
		if src := &m.legs[op.src]; res == Fenced && src.session == op.srcSession && src.phase == legUp {
			m.legFailed(op.src, Fenced, "its session is over")
		}
	default:
		m.legFailed(leg, res, "copying to it failed: "+res.meaning())
	}
	m.progress()
}

// owesBefore says whether the leg has yet to answer something submitted before
// the mark, or something from before it came up is still under way elsewhere.
func (m *Machine) owesBefore(leg int, mark uint64) bool {
	return slices.ContainsFunc(m.inflight, func(op *Op) bool {
		return op.Kind == Change && op.seq < mark && (op.targets.has(leg) && !op.done.has(leg))
	})
}

// drained goes on when all that was sent before the mark is answered.
func (m *Machine) drained(leg int) {
	l := &m.legs[leg]
	if m.owesBefore(leg, l.mark) && !mutant.On("promote-undrained") {
		return
	}
	if mutant.On("promote-unflushed") {
		l.step, l.want, l.reason = stepPromote, volume.InSync, ""
		return
	}
	l.step = stepFlush
	m.ownFlush(leg)
}

// ownFlush makes durable what the leg was given before it counted.
func (m *Machine) ownFlush(leg int) {
	m.seq++
	op := &Op{Kind: Flush, seq: m.seq, own: leg, targets: bit(leg), need: bit(leg), sent: m.now}
	m.inflight = append(m.inflight, op)
	m.legs[leg].copier = op
	m.emit(Action{Kind: Send, Leg: leg, Session: m.legs[leg].session, Op: op})
}

// promoted finishes rebuilds whose swap has landed, and begins the swap of those
// whose flush was answered.
func (m *Machine) promoted() {
	for i := range m.legs {
		l := &m.legs[i]
		if l.step == stepPromote && l.recorded == volume.InSync {
			l.step, l.copier, l.reason = stepNone, nil, ""
		}
	}
}

func (m *Machine) flushedForPromotion(op *Op) {
	l := &m.legs[op.own]
	if l.copier == op && l.step == stepFlush {
		l.copier = nil
		l.step = stepPromote
		l.want, l.reason = volume.InSync, ""
	}
}
