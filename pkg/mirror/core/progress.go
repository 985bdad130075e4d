package core

import (
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A resync that is interrupted goes on about where it was, for the cycle that clears
// intent bits takes from the delta, durably, what was copied: from what the sources
// have noted for the leg, and from the leg's own intent bits. What must be prevented:
// a region is taken out in which the leg differs, or may differ after a crash.
//
// What lies below the leg's cursor is equal on it and the sources: it was not in the
// delta, or was compared and copied, and the leg has got every change since it came
// up. It is durable there when a flush is answered that was sent to the leg when its
// cursor was there already. What a change does to it later is told by the bits of the
// present generation, which stay, on the sources and on the leg; and what older bits
// tell was answered by the leg before that flush. If the leg is lost, the cycle is
// given up before anything else can happen. A command that is carried out later all
// the same does no harm, for all of that holds for what is durable on the leg.
//
// A leg whose absence nobody knows, because it is new, say, has no delta that could be
// believed after a crash. So the sources note as missed all that they have
// allocated, and the leg's own bits all that it has, above the cursor: from then on
// its delta is known. The store is told only when all of them have answered: its
// number of change becomes the highest. That is, every leg that is InSync then has
// noted this; one that becomes InSync later has a higher number, and is not believed.

// known says whether a readable leg knows all that the leg lacks.
func (m *Machine) known(leg int) bool {
	if mutant.On("believe-any-note") {
		return true
	}
	for i := range m.legs {
		if m.readable().has(i) && m.legs[i].change < m.legs[leg].change {
			return true
		}
	}
	return false
}

// copiedTo is the legs that are being copied to: they are up, and their delta is
// read.
func (m *Machine) copiedTo() mask {
	var s mask
	for i := range m.legs {
		if m.legs[i].step == stepCopy {
			s |= bit(i)
		}
	}
	return s
}

// copiedBelow tells how far legs are copied, in whole regions.
func (m *Machine) copiedBelow(legs mask) (below [MaxLegs]int64) {
	for i := range m.legs {
		if at := m.legs[i].cursor; legs.has(i) && at >= m.size {
			below[i] = int64(m.regions(m.size)) * m.cfg.RegionBytes
		} else if legs.has(i) {
			below[i] = at - at%m.cfg.RegionBytes
		}
	}
	return below
}

// judgeTargets decides which targets nobody knows, when the flush is answered.
func (m *Machine) judgeTargets() {
	c := &m.cycle
	for i := range m.legs {
		if c.targets.has(i) && !m.known(i) {
			c.whole |= bit(i)
		}
	}
	if mutant.On("trim-unsent") {
		c.below = m.copiedBelow(c.targets)
	}
	if mutant.On("believe-unmarked") {
		m.believe(c.whole)
	}
}

// progressOf is what the cycle has replicas write down for a leg.
func (m *Machine) progressOf(leg int) volume.Progress {
	c := &m.cycle
	return volume.Progress{Below: c.below[leg], Whole: c.whole.has(leg) && !mutant.On("mark-nothing")}
}

// believe: every leg that is InSync has noted what these ones lack.
func (m *Machine) believe(targets mask) {
	last := m.lastChange()
	for i := range m.legs {
		if targets.has(i) && m.legs[i].recorded != volume.InSync {
			m.legs[i].change = last + 1
		}
	}
}
