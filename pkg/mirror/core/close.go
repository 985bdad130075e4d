package core

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Close asks for a clean end: what is under way is answered, everything is
// flushed, intent bits are cleared, and the volume is released: as clean, unless
// something is still to be corrected. Stop follows.
func (m *Machine) Close() {
	switch m.phase {
	case Taking, Fencing, Reading, Recording:
		if m.phase != Taking {
			m.giveUp(Refused, "closed while opening")
		} else {
			m.phase = Draining // TakeDone gives up
		}
	case Serving:
		m.phase = Draining
		for i := range m.legs { // rebuilds end here; the next opening goes on
			if l := &m.legs[i]; l.phase != legDown && l.recorded != volume.InSync && !m.counted.has(i) {
				m.closeLeg(i)
				m.forgetLeg(i)
				l.want = volume.Outdated
			}
		}
	default:
		return
	}
	m.progress()
}

// advanceClose takes the next step of a clean end.
func (m *Machine) advanceClose() {
	switch m.phase {
	case Draining:
		if len(m.inflight) == 0 && len(m.waiting) == 0 && !m.frozen() && m.landedStates() {
			m.phase = Flushing
			if mutant.On("close-unflushed") {
				return
			}
			m.seq++
			op := &Op{Kind: Flush, seq: m.seq, own: 0}
			m.dispatch(op)
		}
	case Flushing:
		if len(m.inflight) == 0 && !m.frozen() && m.landedStates() && !m.clearedAtClose() {
			return
		}
		if len(m.inflight) == 0 && !m.frozen() && m.landedStates() {
			m.phase = Releasing
			m.release, m.clean = true, m.dirtyLeft == 0
		}
	}
}

// landedStates says whether the store is known to say what it should of every
// replica.
func (m *Machine) landedStates() bool {
	if m.swapping || m.doubt {
		return false
	}
	for i := range m.legs {
		if m.legs[i].recorded != m.legs[i].want {
			return false
		}
	}
	return true
}

// Grow asks for a larger size. Every replica must be InSync: one that is away
// could come back smaller. GrowDone follows.
func (m *Machine) Grow(size int64) {
	switch {
	case m.phase != Serving:
		m.emit(Action{Kind: GrowDone, Result: Refused, Reason: "the volume is not being served"})
		return
	case size <= m.size:
		m.emit(Action{Kind: GrowDone, Result: OK, Size: m.size})
		return
	case m.growTo != 0: // it goes on with the larger size once this growth is done
		m.growNext = max(m.growNext, size)
		return
	}
	for i := range m.legs {
		if l := &m.legs[i]; l.recorded != volume.InSync || l.want != volume.InSync || l.phase != legUp {
			m.emit(Action{Kind: GrowDone, Result: Refused, Leg: i, Reason: fmt.Sprintf("a replica is %s", l.want)})
			return
		}
	}
	m.growTo, m.growing = size, m.all()
	for i := range m.legs {
		m.emit(Action{Kind: Grow, Leg: i, Session: m.legs[i].session, Size: size})
	}
}

// Grown answers a Grow action for one leg. The size that is served changes only
// when all replicas have it and the store says so. An answer to an earlier
// growth, one that failed elsewhere, says nothing of this one.
func (m *Machine) Grown(a Action, res Result, reason string) {
	if mutant.On("grow-early") {
		m.growing = bit(a.Leg)
	}
	if m.growTo != a.Size || m.legs[a.Leg].session != a.Session || !m.growing.has(a.Leg) {
		return
	}
	m.growing &^= bit(a.Leg)
	if res != OK {
		m.endGrow(res, reason)
	}
	m.progress()
}

// grown: the swap with the new size has landed.
func (m *Machine) grown(size int64) {
	m.size = size
	m.emit(Action{Kind: Resized, Size: size})
	if m.growTo != 0 && size >= m.growTo {
		m.endGrow(OK, "")
	}
}

// endGrow answers for everyone who asked for no more than is served now, or, if
// it failed, for everyone.
func (m *Machine) endGrow(res Result, reason string) {
	next := m.growNext
	m.growTo, m.growing, m.growNext = 0, 0, 0
	m.emit(Action{Kind: GrowDone, Result: res, Size: m.size, Reason: reason})
	if res == OK && next > m.size {
		m.Grow(next)
	}
}
