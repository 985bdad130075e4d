package core

import "github.com/holdfast-csi/holdfast/pkg/mutant"

// A holder that is cut off, or stopped for a while, may have been overtaken without
// knowing it. It acknowledges no change, for the one that overtook it has fenced at
// least one leg that acknowledgements need. But a read is answered by one leg alone,
// and that may be the one that the other could not reach: what was written since is
// not there.
//
// So reads need a lease. A leg that answers was open for this holder when it was
// asked, or later; so nobody has fenced it before that moment, and nobody who fences
// it afterwards serves before Config.Lease and a margin are over, unless no leg is
// left that an older holder could read from. A read is sent while every counted leg
// has answered something that was asked less than a lease ago: at that moment nobody
// else has served, so what it brings is the present content, however long its own
// answer takes. It is sent, too, when the legs whose lease is over have answered something
// that was asked after it came: nobody else had served by then, so it is answered
// however long the legs take. When the lease is half over, a read has the legs asked anew (confirm);
// an idle volume asks nothing, and its next read waits for the answers.
//
// The leg that reads are served by needs no proof: it refuses them once it is fenced.
//
// Both sides measure by clocks of their own that only have to run equally fast. This
// one's goes on while the process is stopped; one that does not, because the whole
// machine was suspended, proves too much.

// Clock tells how much time has passed, in ticks. The shell calls it before each
// other event: nothing is decided by an old clock.
func (m *Machine) Clock(now int64) { m.clock = max(m.clock, now) }

// leaseLegs is the legs without whose proof no read may be sent.
func (m *Machine) leaseLegs() mask {
	need := m.counted
	for i := range m.legs {
		if m.legs[i].local && m.readable().has(i) {
			need &^= bit(i)
		}
	}
	if !several(m.counted) {
		need = 0 // whoever overtook this holder has fenced the leg that answers
	}
	return need
}

// leased says whether the read may be sent.
func (m *Machine) leased(op *Op) bool {
	late := m.unproven(m.cfg.Lease)
	for i := range m.legs {
		if late.has(i) && m.legs[i].proven >= op.arrived {
			late &^= bit(i)
		}
	}
	return late == 0 || mutant.On("read-without-lease")
}

// unproven is the legs that have not answered anything asked so lately.
func (m *Machine) unproven(since int64) mask {
	if m.cfg.Lease == 0 {
		return 0
	}
	var s mask
	need := m.leaseLegs()
	for i := range m.legs {
		if need.has(i) && m.clock-m.legs[i].proven >= since {
			s |= bit(i)
		}
	}
	return s
}

// renewLease asks the legs whose proof is half over.
func (m *Machine) renewLease() {
	ask := m.unproven((m.cfg.Lease + 1) / 2)
	for i := range m.legs {
		l := &m.legs[i]
		if !ask.has(i) || l.phase != legUp || l.confirming {
			continue
		}
		l.confirming, l.confirmed = true, m.now
		m.seq++
		op := &Op{Kind: Confirm, seq: m.seq, targets: bit(i), sent: m.now, asked: m.clock, own: i}
		m.emit(Action{Kind: Send, Leg: i, Session: l.session, Op: op})
	}
}

// renewForWaiting renews the lease if a read waits: what was answered may have been
// asked before it came.
func (m *Machine) renewForWaiting() {
	if m.phase != Serving && m.phase != Draining {
		return
	}
	for _, op := range m.waiting {
		if op.Kind == Read {
			m.renewLease()
			return
		}
	}
}

// confirmed takes the answer to a confirm. It says nothing about the leg's disk, so
// a leg that answers nothing else is still silent.
func (m *Machine) confirmed(leg int, res Result) {
	m.legs[leg].confirming = false
	if res != OK {
		m.legEnded(leg, res, "its session was not confirmed: "+res.meaning())
	}
	m.progress()
}

// fenced: a leg was opened at the start. Leases of holders before this one end a
// lease after the first; a quarter more is for clocks that don't run equally fast.
func (m *Machine) fenced(leg int) {
	if m.fences == 0 {
		m.serveAt = m.clock + m.cfg.Lease + m.cfg.Lease/4
	}
	m.fences |= bit(leg)
}

// oldLeasesOver says whether no older holder can answer a read any more: none had
// the volume open, or no leg is left that it could read from, or its time is over.
func (m *Machine) oldLeasesOver() bool {
	return m.wasClean || m.fences == m.all() || m.clock >= m.serveAt || mutant.On("serve-within-lease")
}

// maybeServe serves once the store knows what was not reached and older holders
// have no lease.
func (m *Machine) maybeServe() {
	recorded := !m.swapping && m.satisfied() || mutant.On("serve-before-recording")
	if m.phase == Recording && recorded && m.oldLeasesOver() {
		m.serve()
	}
}
