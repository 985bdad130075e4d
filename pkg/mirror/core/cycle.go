package core

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
)

// An intent bit says that its region may differ between replicas, or may not be
// durable on some. It must not be cleared before neither can be: the replica that
// is used next would keep a difference, or one that returns would lack a change.
// So, from time to time:
//
//  1. Every leg begins a new generation of bits (Rotate).
//  2. Every change that was under way when the last leg has done so is answered
//     by all. So all that can have set an older bit is on all legs.
//  3. A flush that is sent then is answered by all.
//  4. Every leg adds its older bits to what each replica that is not InSync has
//     missed, durably, and then clears them (DropPrevious).
//
// Changes go on all the while, and set bits of the new generation. If any leg is
// lost, counted or promoted meanwhile, the cycle is given up; the bits stay. A
// DropPrevious that arrives late finds that its generation is not the present
// one, or that what it clears is what it was meant to.
//
// Legs that are resynced take part too, so that a resync goes on after a crash
// where it was; progress.go has that.
type cycle struct {
	step    cycleStep
	seq     uint64         // of its actions
	legs    mask           // that take part: all that are counted
	targets mask           // that are resynced and take part
	below   [MaxLegs]int64 // by target: what lies before is copied, and durable when the flush is answered
	whole   mask           // of the targets, those whose absence nobody knows
	left    mask           // that have not answered
	mark    uint64         // what was submitted up to it must be answered
	op      *Op            // its flush
	at      int64          // tick of the next one
	done    bool           // at a close: nothing more to clear
}

type cycleStep uint8

const (
	cycleIdle cycleStep = iota
	cycleRotate
	cycleDrain
	cycleFlush
	cycleDrop
)

func (s cycleStep) String() string {
	return [...]string{"idle", "rotate", "drain", "flush", "drop"}[s]
}

// mayClear says whether every leg is either InSync and up, or known by the store
// not to be InSync, and nothing is about to change that.
func (m *Machine) mayClear() bool {
	if m.dirtyLeft > 0 || len(m.correcting) > 0 || m.frozen() || m.swapping || m.doubt || len(m.legs) < 2 {
		return false
	}
	inSync := m.readable()
	for i := range m.legs {
		l := &m.legs[i]
		if l.recorded != l.want || inSync.has(i) != m.counted.has(i) || l.step >= stepDrain {
			return false
		}
	}
	return true
}

// beginCycle begins to clear intent bits, when it is time.
func (m *Machine) beginCycle() {
	if c := &m.cycle; m.phase == Serving && c.step == cycleIdle && m.written && m.now >= c.at && m.mayClear() {
		m.rotate()
	}
}

func (m *Machine) rotate() {
	m.seq++
	targets := m.copiedTo()
	m.cycle = cycle{step: cycleRotate, seq: m.seq, legs: m.counted, targets: targets, left: m.counted | targets, at: m.now + m.cfg.Settle}
	// What is under way may reach a leg after this, and set a bit that stays.
	m.written = slices.ContainsFunc(m.inflight, func(op *Op) bool { return op.Kind == Change })
	for i := range m.legs {
		if m.cycle.left.has(i) {
			m.emit(Action{Kind: Rotate, Leg: i, Session: m.legs[i].session, Seq: m.cycle.seq})
		}
	}
}

// giveUpCycle leaves the bits for the next one.
func (m *Machine) giveUpCycle() {
	if m.cycle.step == cycleIdle {
		return
	}
	m.endCycle()
	m.written = true
}

func (m *Machine) endCycle() {
	c := &m.cycle
	c.step, c.op, c.below, c.whole = cycleIdle, nil, [MaxLegs]int64{}, 0
}

// Rotated answers Rotate.
func (m *Machine) Rotated(a Action, res Result) { m.cycleAnswer(cycleRotate, a, res) }

// Dropped answers DropPrevious and DropCopied.
func (m *Machine) Dropped(a Action, res Result) { m.cycleAnswer(cycleDrop, a, res) }

func (m *Machine) cycleAnswer(step cycleStep, a Action, res Result) {
	c := &m.cycle
	if m.phase == Stopped || c.step != step || a.Seq != c.seq || m.legs[a.Leg].session != a.Session {
		return
	}
	m.legs[a.Leg].heard = m.now
	if res != OK {
		m.giveUpCycle() // its session tells, if the leg is broken
	} else {
		c.left &^= bit(a.Leg)
	}
	m.progress()
}

// advanceCycle takes the next step, if what it is based on still holds.
func (m *Machine) advanceCycle() {
	c := &m.cycle
	if c.step == cycleIdle {
		return
	}
	if c.legs != m.counted || !m.mayClear() {
		m.giveUpCycle()
		return
	}
	switch {
	case c.step == cycleRotate && c.left == 0:
		m.seq++
		c.mark, c.step = m.seq, cycleDrain
		fallthrough
	case c.step == cycleDrain:
		if slices.ContainsFunc(m.inflight, func(op *Op) bool { return op.Kind == Change && op.seq < c.mark }) && !mutant.On("clear-undrained") {
			return
		}
		m.flushForCycle()
	case c.step == cycleDrop && c.left == 0:
		m.believe(c.whole)
		m.endCycle()
	}
}

// flushForCycle makes durable what the older bits stand for, and what was copied.
func (m *Machine) flushForCycle() {
	c := &m.cycle
	m.seq++
	c.step, c.op = cycleFlush, &Op{Kind: Flush, seq: m.seq, sent: m.now, need: c.legs, targets: c.legs | c.targets}
	c.below = m.copiedBelow(c.targets)
	if mutant.On("clear-unflushed") {
		m.flushedForCycle(c.op)
		return
	}
	m.inflight = append(m.inflight, c.op)
	m.sendAll(c.op)
}

// needs is the legs that an operation's reply still needs.
func (m *Machine) needs(op *Op) mask {
	if op == m.cycle.op && !mutant.On("trim-unflushed") { // once the cycle is given up the targets don't matter
		return op.need&m.counted | m.cycle.targets
	}
	return op.need & m.counted
}

// flushedForCycle: all that the older bits stand for is durable everywhere.
func (m *Machine) flushedForCycle(op *Op) {
	c := &m.cycle
	if c.step != cycleFlush || c.op != op {
		return
	}
	c.op = nil
	if c.legs != m.counted || !m.mayClear() {
		m.giveUpCycle()
		return
	}
	c.step, c.left = cycleDrop, c.legs|c.targets
	m.judgeTargets()
	var away []Away
	for i := range m.legs {
		if !c.legs.has(i) && !mutant.On("clear-unnoted") {
			away = append(away, Away{i, m.progressOf(i)})
		}
	}
	for i := range m.legs {
		switch {
		case c.legs.has(i):
			m.emit(Action{Kind: DropPrevious, Leg: i, Session: m.legs[i].session, Seq: c.seq, Away: away})
		case c.targets.has(i):
			m.emit(Action{Kind: DropCopied, Leg: i, Session: m.legs[i].session, Seq: c.seq, Progress: m.progressOf(i)})
		}
	}
}

// clearedAtClose runs a last cycle, once, after the last flush.
func (m *Machine) clearedAtClose() bool {
	if c := &m.cycle; c.step == cycleIdle {
		if c.done || !m.written || !m.mayClear() {
			return true
		}
		m.rotate()
		c.done = true
	}
	return false
}
