package core

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A resync makes an Outdated replica equal again while the volume goes on: every
// region that may differ (the delta) is compared with an InSync leg's, and what
// differs is copied. Three things must be prevented.
//
// The copy reads a block, the application overwrites it, the copy writes the old
// block over it. So a copy holds its range from before the read until the write
// was answered, and since the leg came up it gets every change, whether its place
// was copied already or not.
//
// A region that differs is not in the delta. The replica was InSync once. Since
// then others have got changes that it has not: a leg that was InSync for all of
// its absence has either their intent bits still, or has put them into what the
// replica missed before it cleared them. The replica may have changes that others
// have not, or may have lost some with its power: its own intent bits have them,
// for they are cleared only after it has flushed. Changes that were under way
// when it came up were not sent to it, and may not have set their bits yet: they
// are added here. If no such leg is there, everything that either side has
// allocated is compared.
//
// Legs that differ are copied from. So nothing is copied before all regions that
// were dirty at the opening are corrected, nor while a correction is under way whose
// source is gone: nothing is dirty then if one leg is left, but that leg may yet get
// what the source had.
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

// startResync: the leg is up, with a fresh session, and gets every change from
// now on.
func (m *Machine) startResync(leg int) {
	l := &m.legs[leg]
	if m.phase != Serving {
		m.closeLeg(leg)
		return
	}
	l.backoff = m.cfg.Reopen
	l.step, l.cursor, l.moved = stepWait, 0, 0
	l.want = volume.Rebuilding
	l.delta = bitmap.New(m.regions(m.size))
	// The copies wait for these, as every copy does for what it overlaps, so they
	// read their bytes.
	for _, op := range m.inflight {
		if op.Kind == Change && !mutant.On("delta-without-inflight") {
			from, to := m.span(op)
			l.delta.AddRange(from, to)
		}
	}
}

// askDelta asks what may differ on the leg; see above.
func (m *Machine) askDelta(leg int) {
	l := &m.legs[leg]
	if m.dirtyLeft > 0 || len(m.correcting) > 0 || m.rejoining() != 0 {
		return
	}
	l.step = stepMaps
	if !m.known(leg) {
		m.ask(m.copySource(), MapAllocated, leg)
		m.ask(leg, MapAllocated, leg)
		return
	}
	for i := range m.legs {
		if m.readable().has(i) {
			m.ask(i, MapMissed, leg)
		}
	}
	if !mutant.On("delta-without-own") {
		m.ask(leg, MapIntent, leg)
	}
}

// deltaRead brings an answer to askDelta. A map that can't be read has every
// region.
func (m *Machine) deltaRead(about int, res Result, regions *bitmap.Set) {
	l := &m.legs[about]
	if l.step != stepMaps {
		return
	}
	if res != OK || regions == nil {
		l.delta.AddAll()
	} else {
		l.delta.Or(regions)
	}
	if !m.asksAbout(about) {
		l.step = stepCopy
	}
}

// advanceResyncs does the next step of each resync.
func (m *Machine) advanceResyncs() {
	if m.phase != Serving {
		return
	}
	for i := range m.legs {
		l := &m.legs[i]
		switch l.step {
		case stepWait:
			m.askDelta(i)
		case stepCopy:
			m.nextCopy(i)
		case stepDrain:
			m.drained(i)
		}
	}
}

// nextCopy queues the next range, when it has a turn, or counts the leg when there
// is none.
func (m *Machine) nextCopy(leg int) {
	l := &m.legs[leg]
	if l.copier != nil {
		return
	}
	at := l.delta.Next(int(l.cursor / m.cfg.RegionBytes))
	off := max(l.cursor, int64(at)*m.cfg.RegionBytes)
	if off >= m.size || mutant.On("copy-misses-the-end") && off > 0 {
		if !mutant.On("promote-uncounted") {
			m.counted |= bit(leg)
		}
		m.giveUpCycle()
		m.seq++
		l.mark, l.step = m.seq, stepDrain
		m.drained(leg)
		return
	}
	if l.turn <= 0 {
		m.askTurn(leg)
		return
	}
	end := min(int64(l.delta.NextAbsent(at))*m.cfg.RegionBytes, m.size)
	m.seq++
	op := &Op{Kind: copyRange, Off: off, Len: min(m.cfg.CopyBytes, end-off, l.turn), seq: m.seq, own: leg}
	l.copier, l.turn = op, 0
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
	if op == nil {
		return
	}
	if op.Kind == correct {
		m.correctionDone(leg, s, op, res, source)
		return
	}
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
		l.moved += op.Len
		m.written = true // to be noted
	case source: // again, by advanceResyncs
		m.sourceFailed(op, res)
	default:
		m.legFailed(leg, res, "copying to it failed: "+res.meaning())
	}
	m.progress()
}

// sourceFailed gives the source of a copy up if its session is over; only the
// copy may notice.
func (m *Machine) sourceFailed(op *Op, res Result) {
	if src := &m.legs[op.src]; res == Fenced && src.session == op.srcSession && src.phase == legUp {
		m.legEnded(op.src, Fenced, "its session is over")
	}
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
	op := &Op{Kind: Flush, seq: m.seq, own: leg, targets: bit(leg), need: bit(leg), sent: m.now, asked: m.clock}
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
			l.step, l.copier, l.delta, l.reason = stepNone, nil, nil, ""
			m.written = true // what it missed can be forgotten
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
