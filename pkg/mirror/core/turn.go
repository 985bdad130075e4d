package core

import "github.com/holdfast-csi/holdfast/pkg/volume"

// A resync asks for a turn before each copy, for the node's other resyncs and its
// applications go first at times. What must be prevented: changes that wait for a
// copy that waits for its turn, and a leg that is taken for silent meanwhile. So
// the machine asks before there is a copy at all: nothing is locked, and nothing
// is sent that the leg could owe an answer to. What the copy will be is decided
// when the turn comes. Corrections of dirty regions ask nobody: reads wait for
// them.

// turnAsked is the turn of a leg that waits for one.
const turnAsked = -1

// askTurn asks once.
func (m *Machine) askTurn(leg int) {
	l := &m.legs[leg]
	if l.turn == 0 {
		l.turn = turnAsked
		m.emit(Action{Kind: AskTurn, Leg: leg, Session: l.session})
	}
}

// Turn answers AskTurn: the next copy to the leg may begin, of at most so many
// bytes, which must be more than 0. It says whether the turn is wanted: if not, the
// leg was given up meanwhile.
func (m *Machine) Turn(leg int, s volume.Session, bytes int64) (wanted bool) {
	l := &m.legs[leg]
	if l.session != s || l.phase != legUp || l.turn != turnAsked {
		return false
	}
	l.turn = max(bytes, 1)
	m.progress()
	return true
}
