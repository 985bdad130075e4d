package core

import (
	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Machine decides for one opening of one volume. See the package comment.
type Machine struct {
	cfg   Config
	phase Phase
	now   int64 // tick
	clock int64 // as the shell last told it; passes while the process is stopped, too
	seq   uint64
	size  int64 // bytes served
	legs  []leg

	// counted: the legs that every acknowledgement needs.
	// Invariant: every leg that any swap that may have landed calls InSync is
	// counted; a leg leaves only by a successful swap that calls it otherwise.
	counted mask
	// up: the legs with a session. Invariant: equals the legs in phase legUp.
	up mask

	inflight []*Op // sent, and not yet answered by all its targets, or not replied
	waiting  []*Op // in order of arrival; each overlaps something before it, or the machine is not serving

	// dirty is the regions that may differ between the InSync legs since the last
	// holder, and dirtyLeft how many. Invariant: it only shrinks; no read of such a
	// region is under way, and no resync goes beyond stepWait while there is one.
	dirty      *bitmap.Set
	dirtyLeft  int
	correctAt  int   // the background looks for the next one from here on
	correcting []*Op // corrections under way or waiting

	asked   []question // ReadMap actions without an answer
	cycle   cycle      // clearing of intent bits
	written bool       // since the last cycle began

	swapping  bool  // a swap is under way
	swapped   Wants // what it says
	landed    Wants // what the last successful one said
	doubt     bool  // one may still land
	wasClean  bool  // at Start: the close before this opening was clean
	paused    bool  // some counted leg has no space
	growTo    int64 // bytes; 0 when none is under way
	growing   mask  // legs that have not answered Grow
	growNext  int64 // bytes; asked for meanwhile
	release   bool
	clean     bool
	nextRead  int
	fences    mask   // legs that were opened at the start
	serveAt   int64  // what the clock must say before anything is served (lease.go)
	failing   Result // why the opening or the serving is being given up
	failedFor string

	out []Action
}

// New makes a machine for the volume with these legs, in the order of the
// volume's Status.Replicas.
func New(cfg Config) (*Machine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, legs: make([]leg, len(cfg.Legs))}
	for i := range m.legs {
		m.legs[i].local = cfg.Legs[i].Local
	}
	return m, nil
}

// Take returns the actions appended since the last Take. The slice is valid
// until the next call of the machine after the following Take.
func (m *Machine) Take(into []Action) []Action {
	into = append(into, m.out...)
	clear(m.out) // drop the pointers
	m.out = m.out[:0]
	return into
}

func (m *Machine) emit(a Action) { m.out = append(m.out, a) }

// Phase is where the machine is in its life.
func (m *Machine) Phase() Phase { return m.phase }

// Size is the bytes served.
func (m *Machine) Size() int64 { return m.size }

// Superseded tells that the store was seen with a newer epoch or another
// holder: nothing more can be acknowledged.
func (m *Machine) Superseded(reason string) { m.stop(Fenced, reason) }

// Abort ends the machine at once, as a crash would: nothing is flushed, and the
// store keeps its word.
func (m *Machine) Abort() { m.stop(Refused, "closed") }

// Progress tells how many bytes of leg's resync were compared or copied, of how
// many, and whether one runs.
func (m *Machine) Progress(leg int) (done, total int64, running bool) {
	l := &m.legs[leg]
	return l.moved, int64(l.delta.Count()) * m.cfg.RegionBytes, l.step != stepNone
}

// Dirty is how many regions have yet to be corrected.
func (m *Machine) Dirty() int { return m.dirtyLeft }

// LegState is what the store is known to say of the leg's replica, and why.
func (m *Machine) LegState(leg int) (volume.ReplicaState, string) {
	return m.legs[leg].recorded, m.legs[leg].reason
}

// Session is the leg's present session, and whether it is up.
func (m *Machine) Session(leg int) (volume.Session, bool) {
	return m.legs[leg].session, m.legs[leg].phase == legUp
}

func (m *Machine) all() mask          { return mask(1)<<len(m.legs) - 1 }
func (m *Machine) upAndCounted() mask { return m.up & m.counted }

// frozen says whether a counted leg is gone and the store does not know yet:
// nothing that such a leg should have seen may be acknowledged or read.
func (m *Machine) frozen() bool { return m.counted&^m.up != 0 }

// Tick tells the time; it never goes back.
func (m *Machine) Tick(now int64) {
	m.now = max(m.now, now)
	if m.phase == Stopped {
		return
	}
	if err := m.CheckInvariants(); err != nil {
		m.stop(Broken, "the mirror contradicts itself: "+err.Error())
		return
	}
	m.maybeServe()
	m.resendNoSpace()
	m.judgeSilence()
	m.awaitRejoins()
	m.reopen()
	m.beginCycle()
	m.progress()
}

// progress moves on whatever can move: it is called at the end of every event.
func (m *Machine) progress() {
	m.advanceReading()
	m.advanceCorrections()
	m.renewForWaiting()
	m.dispatchWaiting()
	m.advanceResyncs()
	m.advanceCycle()
	m.advanceClose()
	m.maybeSwap()
}
