package core

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// question is a ReadMap without an answer.
type question struct {
	seq        uint64
	leg, about int
}

// regions is how many regions so many bytes have.
func (m *Machine) regions(size int64) int {
	return int((size + m.cfg.RegionBytes - 1) / m.cfg.RegionBytes)
}

// span is the regions that an operation touches: from, and up to but without to.
func (m *Machine) span(op *Op) (from, to int) {
	return int(op.Off / m.cfg.RegionBytes), m.regions(op.Off + op.Len)
}

// several says whether there is more than one leg in the set.
func several(s mask) bool { return s&(s-1) != 0 }

func (m *Machine) ask(leg int, kind MapKind, about int) {
	m.seq++
	m.asked = append(m.asked, question{seq: m.seq, leg: leg, about: about})
	m.emit(Action{Kind: ReadMap, Leg: leg, Session: m.legs[leg].session, Seq: m.seq, Map: kind, About: about})
}

// unask forgets what was asked of a leg that is gone, or for its resync. A resync
// that lacks an answer by that asks again.
func (m *Machine) unask(leg int) {
	m.asked = slices.DeleteFunc(m.asked, func(q question) bool {
		if q.leg == leg && q.about >= 0 && q.about != leg {
			m.legs[q.about].step = stepWait
		}
		return q.leg == leg || q.about == leg
	})
	for i := range m.legs {
		if m.legs[i].step == stepWait { // all over
			m.asked = slices.DeleteFunc(m.asked, func(q question) bool { return q.about == i })
		}
	}
}

// asksAbout says whether a resync waits for a map.
func (m *Machine) asksAbout(leg int) bool {
	return slices.ContainsFunc(m.asked, func(q question) bool { return q.about == leg })
}

// MapRead answers ReadMap with the regions, nil meaning all. They are the
// machine's from then on.
func (m *Machine) MapRead(a Action, res Result, regions *bitmap.Set) {
	i := slices.IndexFunc(m.asked, func(q question) bool { return q.seq == a.Seq })
	if i < 0 || m.phase == Stopped {
		return
	}
	q := m.asked[i]
	m.asked = slices.Delete(m.asked, i, i+1)
	m.legs[q.leg].heard = m.now
	if q.about >= 0 {
		m.deltaRead(q.about, res, regions)
	} else {
		m.intentsRead(q.leg, res, regions)
	}
	m.progress()
}

// readIntents asks all reached legs, after an unclean close, what the last
// holder may have had under way.
func (m *Machine) readIntents(reached mask) {
	m.phase = Reading
	m.dirty = bitmap.New(m.regions(m.size))
	for i := range m.legs {
		if reached.has(i) {
			m.ask(i, MapIntent, -1)
			if mutant.On("dirty-of-one-leg") {
				return
			}
		}
	}
}

// intentsRead brings an answer to readIntents. A leg whose map can't be read is
// not one of those that were reached.
func (m *Machine) intentsRead(leg int, res Result, regions *bitmap.Set) {
	switch {
	case res == OK && regions == nil:
		m.dirty.AddAll()
	case res == OK:
		m.dirty.Or(regions)
	default:
		l := &m.legs[leg]
		l.want, l.reason = volume.Outdated, "its intent bits could not be read: "+res.meaning()
		if res == Broken {
			l.want = volume.Failed
		}
		if res == Fenced {
			m.failing, m.failedFor = res, l.reason
		}
		m.closeLeg(leg)
	}
}

// advanceReading goes on with the opening when all intent bits were read.
func (m *Machine) advanceReading() {
	if m.phase != Reading || len(m.asked) > 0 {
		return
	}
	reached := m.upAndCounted()
	switch {
	case m.failing != OK:
		m.giveUp(m.failing, m.failedFor)
	case reached == 0:
		m.giveUp(Lost, "no InSync replica could be reached any more")
	default:
		if !several(reached) {
			m.dirty = nil // there is nothing to differ from
		}
		m.dirtyLeft = m.dirty.Count()
		m.record()
	}
}

// After an unclean close the InSync replicas may differ in what the last holder
// had under way: any content of a block will do, but all must agree on it before
// it is read, or else a failover would take back what was read. So each dirty
// region is compared with one leg's, and what differs is copied, on all readable
// legs; a read of it waits for that. Changes to it wait only while that is being
// done. If the source is lost half way, another one takes its place, for nobody
// has read the region. A leg that is lost is Outdated, and its own intent bits
// have what it differs in.

// isDirty says whether a read needs a region that is not yet corrected.
func (m *Machine) isDirty(op *Op) bool {
	if m.dirtyLeft == 0 || op.Kind != Read {
		return false
	}
	from, to := m.span(op)
	if mutant.On("read-dirty") {
		return false
	}
	return m.dirty.Next(from) < min(to, m.dirty.Len()) // the volume may have grown since
}

// advanceCorrections begins corrections: first of what reads wait for, then, in
// the background, of everything.
func (m *Machine) advanceCorrections() {
	if m.dirtyLeft == 0 || m.phase != Serving && m.phase != Draining || !several(m.readable()) || m.rejoining() != 0 {
		return
	}
	for _, op := range slices.Clone(m.waiting) {
		if op.Kind != Read {
			continue
		}
		for r, to := m.span(op); len(m.correcting) < m.cfg.Corrections; r++ {
			if r = m.dirty.Next(r); r >= min(to, m.dirty.Len()) {
				break
			}
			m.correctRegion(r)
		}
	}
	if m.phase != Serving {
		return
	}
	for len(m.correcting) < (m.cfg.Corrections+1)/2 {
		r := m.dirty.Next(m.correctAt)
		m.correctAt = r + 1
		if r == m.dirty.Len() {
			m.correctAt = 0
			return // the next event begins anew with what was left
		}
		m.correctRegion(r)
	}
}

func (m *Machine) correctRegion(r int) {
	off := int64(r) * m.cfg.RegionBytes
	if slices.ContainsFunc(m.correcting, func(op *Op) bool { return op.Off == off }) {
		return
	}
	m.seq++
	op := &Op{Kind: correct, Off: off, Len: min(m.cfg.RegionBytes, m.size-off), seq: m.seq, src: -1}
	m.correcting = append(m.correcting, op)
	if m.mustWait(op, len(m.waiting)) {
		op.waiting = true
		m.waiting = append(m.waiting, op)
		return
	}
	m.beginCorrection(op)
}

func (m *Machine) beginCorrection(op *Op) {
	op.waiting = false
	op.sent = m.now
	op.src = m.copySource()
	op.srcSession = m.legs[op.src].session
	op.targets = m.readable() &^ bit(op.src)
	m.inflight = append(m.inflight, op)
	for i := range m.legs {
		if op.targets.has(i) {
			m.emit(Action{Kind: Copy, Leg: i, Session: m.legs[i].session, Src: op.src, SrcSession: op.srcSession, Op: op})
		}
	}
	if op.targets == 0 { // it depends on a swap now who remains
		op.again = true
		m.corrected(op)
	}
}

// correctionDone brings one target's answer.
func (m *Machine) correctionDone(leg int, s volume.Session, op *Op, res Result, source bool) {
	l := &m.legs[leg]
	if l.session != s || l.phase != legUp || !op.targets.has(leg) || op.done.has(leg) {
		return
	}
	l.heard = m.now
	switch {
	case res == OK, source, res == NoSpace: // once more, when there may be space
		op.done |= bit(leg)
		op.again = op.again || res != OK
		switch src := &m.legs[op.src]; {
		case !source, src.session != op.srcSession, src.phase != legUp, !several(m.readable()):
		default:
			m.legEnded(op.src, res, "a region of it could not be read: "+res.meaning())
		}
		m.corrected(op)
	default:
		m.legEnded(leg, res, "correcting it failed: "+res.meaning())
	}
	m.progress()
}

// corrected ends a correction that all its targets have answered. It counts only
// if its source, which must be equal too, is still there.
func (m *Machine) corrected(op *Op) {
	if op.targets&^op.done != 0 || op.replied {
		return
	}
	op.replied = true
	m.forget(op)
	m.correcting = slices.DeleteFunc(m.correcting, func(p *Op) bool { return p == op })
	src := &m.legs[op.src]
	r := int(op.Off / m.cfg.RegionBytes)
	if op.again || src.phase != legUp || src.session != op.srcSession || !m.dirty.Has(r) {
		return
	}
	m.dirty.Remove(r)
	m.dirtyLeft--
}
