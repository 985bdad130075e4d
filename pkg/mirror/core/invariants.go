package core

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// CheckInvariants says what of the machine's own state contradicts itself, or
// nil. Tests call it after every event; Tick calls it, and a machine that
// contradicts itself serves nothing any more.
func (m *Machine) CheckInvariants() error {
	var up mask
	for i := range m.legs {
		l := &m.legs[i]
		if l.phase == legUp {
			up |= bit(i)
		}
		if l.recorded == volume.InSync && m.phase > Taking && m.phase < Stopped && !m.counted.has(i) {
			return fmt.Errorf("leg %d is recorded InSync but not counted", i)
		}
		if m.swapping && !m.swapped.Take && m.swapped.States[i] == volume.InSync && !m.counted.has(i) {
			return fmt.Errorf("leg %d is being swapped to InSync but not counted", i)
		}
		if l.rejoinBy != 0 && (l.phase == legUp || !m.counted.has(i) || l.recorded != volume.InSync || l.want != volume.InSync) {
			return fmt.Errorf("leg %d is waited for, but is %s, %s and wanted %s", i, l.phase, l.recorded, l.want)
		}
		if l.step >= stepDrain && !m.counted.has(i) {
			return fmt.Errorf("leg %d is being promoted but not counted", i)
		}
		if l.step != stepNone && l.phase != legUp {
			return fmt.Errorf("leg %d is resynced but %s", i, l.phase)
		}
		if l.step > stepWait && m.dirtyLeft > 0 {
			return fmt.Errorf("leg %d is resynced while %d regions are dirty", i, m.dirtyLeft)
		}
		if l.step != stepNone && l.delta == nil || l.step == stepMaps && !m.asksAbout(i) {
			return fmt.Errorf("leg %d is resynced without a delta, or waits for no map", i)
		}
	}
	if m.dirty.Count() != m.dirtyLeft && m.phase != Reading {
		return fmt.Errorf("%d regions are dirty, not %d", m.dirty.Count(), m.dirtyLeft)
	}
	if m.cycle.step > cycleIdle && (m.dirtyLeft > 0 || m.cycle.legs&^m.up != 0) {
		return fmt.Errorf("intent bits are being cleared with %d dirty regions and legs %b of %b", m.dirtyLeft, m.up, m.cycle.legs)
	}
	if up != m.up {
		return fmt.Errorf("up is %b, legs say %b", m.up, up)
	}
	if m.phase == Serving && m.readable() == 0 && m.rejoining() == 0 {
		return fmt.Errorf("serving without a readable leg")
	}
	for i, a := range m.inflight {
		if a.waiting {
			return fmt.Errorf("operation %d is under way and waits", a.seq)
		}
		if a.Kind == Read && !a.replied && m.isDirty(a) {
			return fmt.Errorf("read %d of a dirty region is under way", a.seq)
		}
		if a.targets&^m.up != 0 {
			return fmt.Errorf("operation %d waits for legs %b that are not up", a.seq, a.targets&^m.up)
		}
		if late := a.retry &^ a.need; late != 0 {
			return fmt.Errorf("operation %d is kept for legs %b, which its reply does not need", a.seq, late)
		}
		for _, b := range m.inflight[i+1:] {
			if a.Kind == Change && b.Kind == Change && a.overlaps(b) {
				return fmt.Errorf("changes %d and %d overlap and are both under way", a.seq, b.seq)
			}
			if (a.Kind == Change && b.Kind.isCopy() || a.Kind.isCopy() && b.Kind == Change) && a.overlaps(b) {
				return fmt.Errorf("a change and a copy overlap: %d, %d", a.seq, b.seq)
			}
		}
	}
	return nil
}
