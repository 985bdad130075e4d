package core

import (
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// wants is what the store should say.
func (m *Machine) wants() Wants {
	w := Wants{
		States: make([]volume.ReplicaState, len(m.legs)), Reasons: make([]string, len(m.legs)), Changes: make([]uint64, len(m.legs)),
		Incarnations: make([]volume.Incarnation, len(m.legs)),
		Size:         m.wantSize(), Paused: m.paused, Release: m.release, Clean: m.clean,
	}
	last := m.lastChange()
	for i := range m.legs {
		l := &m.legs[i]
		w.States[i], w.Reasons[i], w.Changes[i] = l.want, l.reason, l.change
		if l.want == volume.InSync {
			w.Reasons[i] = ""
		}
		w.Incarnations[i] = l.wantIncarnation()
		if (l.want == volume.InSync) != (l.recorded == volume.InSync) {
			w.Changes[i] = last + 1
		}
	}
	return w
}

// lastChange is the highest number of a change of membership.
func (m *Machine) lastChange() uint64 {
	last := uint64(0)
	for i := range m.legs {
		last = max(last, m.legs[i].change)
	}
	return last
}

// maybeSwap begins a swap when one is wanted and none is under way. One whose
// answer was lost (doubt) is settled by another that succeeds, so it is wanted
// even if nothing else changed.
func (m *Machine) maybeSwap() {
	if m.swapping || m.phase < Recording || m.phase == Stopped {
		return
	}
	if !m.doubt && m.satisfied() {
		return
	}
	m.swapping, m.swapped = true, m.wants()
	w := m.swapped
	m.emit(Action{Kind: Swap, Change: &w})
}

// satisfied says whether the last swap that landed says all that is wanted. It
// runs after most events, so it makes no Wants to compare.
func (m *Machine) satisfied() bool {
	w := &m.landed
	if w.Size != m.wantSize() || w.Paused != m.paused || w.Release != m.release {
		return false
	}
	for i := range m.legs {
		l := &m.legs[i]
		if w.States[i] != l.want || w.Changes[i] != l.change || l.want != volume.InSync && w.Reasons[i] != l.reason ||
			l.want == volume.InSync && w.Incarnations[i] != l.wantIncarnation() {
			return false
		}
	}
	return true
}

// wantSize is the size that the store should name: the new one once every
// replica has it.
func (m *Machine) wantSize() int64 {
	if m.growTo != 0 && m.growing == 0 {
		return m.growTo
	}
	return m.size
}

// SwapDone answers a Swap other than the first. Unknown means that it may have
// happened, or may still; the machine goes on wanting.
func (m *Machine) SwapDone(res Result) {
	m.swapping = false
	if m.phase == Stopped {
		return
	}
	if mutant.On("believe-lost-swap") && res == Unknown {
		res = OK
	}
	switch res {
	case OK:
		m.doubt = false
		m.landed = m.swapped
		m.applyLanded()
	case Unknown:
		m.doubt = true
		if mutant.On("forget-lost-swap") {
			m.doubt = false
			m.forgetSwap()
		}
	default:
		m.stop(res, "the volume has another holder, or is gone")
		return
	}
	m.progress()
}

// forgetSwap is a mutant's: it takes a swap without an answer for one that did not
// happen.
func (m *Machine) forgetSwap() {
	for i := range m.legs {
		if l := &m.legs[i]; l.recorded != volume.InSync && l.want != volume.InSync && !m.up.has(i) {
			m.uncount(i)
		}
	}
}

func (m *Machine) applyLanded() {
	w := m.landed
	for i := range m.legs {
		l := &m.legs[i]
		l.recorded, l.change, l.kept = w.States[i], w.Changes[i], w.Incarnations[i]
		if l.recorded != volume.InSync && l.want != volume.InSync && l.step < stepDrain && m.counted.has(i) && !m.up.has(i) {
			m.uncount(i)
		}
	}
	switch {
	case w.Release:
		m.stop(m.failing, m.failedFor)
		return
	default:
		m.maybeServe()
	}
	if w.Size > m.size {
		m.grown(w.Size)
	}
	m.promoted()
}

// wantIncarnation is what the store should note of an InSync leg: the incarnation
// that has had everything since it was opened, or promoted.
func (l *leg) wantIncarnation() volume.Incarnation {
	if l.incarnation == "" || l.want != volume.InSync {
		return l.kept
	}
	return l.incarnation
}
