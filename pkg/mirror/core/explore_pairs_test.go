package core

import (
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// element is something that the proof must see together with every other one.
type element uint8

const (
	twoReplicas element = iota
	threeReplicas
	twoWriters
	aWrite // trim is one, to the machine
	aFlush
	aResync
	aReplacement
	aGrowth
	elements // the faults follow
)

var elementNames = [...]string{
	"two replicas", "three replicas", "two writers", "write or trim", "flush", "resync", "replica removed, another added", "grow",
}

// proofFaults are the faults that the proof names, and what it calls them.
var proofFaults = []struct {
	f    fault
	name string
}{
	{crashProcess, "replica crashes"}, {killHolder, "writer crashes"}, {rebootNode, "node reboots and forgets"}, {powerLoss, "power loss of all"},
	{breakConn, "messages lost or late"}, {swapAfter, "lost answer of a swap"}, {swapBefore, "store unreachable"}, {storeBack, "store set back"},
}

func (e element) String() string {
	if e < elements {
		return elementNames[e]
	}
	return proofFaults[e-elements].name
}

func allElements() int { return int(elements) + len(proofFaults) }

// met is a set of elements.
type met uint32

func (m *met) add(e element) { *m |= 1 << e }

// notes adds what a happening, and the state that it led to, are.
func (s *state) notes(x *explorer, h happening) {
	if x.set.replicas == 2 {
		s.met.add(twoReplicas)
	} else {
		s.met.add(threeReplicas)
	}
	switch h.what {
	case clientAsks:
		switch x.set.shapes[h.j].kind {
		case Change:
			s.met.add(aWrite)
		case Flush:
			s.met.add(aFlush)
		}
	case holderGrows:
		s.met.add(aGrowth)
	case replicaReplaced:
		s.met.add(aReplacement)
	}
	for i, p := range proofFaults {
		if s.left.used[p.f] {
			s.met.add(elements + element(i))
		}
	}
	if len(s.w.holders) > 1 {
		s.met.add(twoWriters)
	}
	for _, h := range s.w.holders {
		for i := range h.m.legs {
			if !h.dead && h.m.legs[i].step != stepNone {
				s.met.add(aResync)
			}
		}
	}
}

// pairs counts the states in whose history both elements were met, as it was first
// found.
type pairs [32][32]int

func (p *pairs) count(m met) {
	for a := range allElements() {
		if m&(1<<a) == 0 {
			continue
		}
		for b := range a {
			if m&(1<<b) != 0 {
				p[a][b]++
			}
		}
	}
}

// report prints the table, and returns the pairs that were not met.
func (p *pairs) report(out io.Writer) (missing []string) {
	for a := range allElements() {
		fmt.Fprintf(out, "pairs %-32s", element(a))
		for b := range a {
			fmt.Fprintf(out, " %8d", p[a][b])
			if one := a == int(threeReplicas) && b == int(twoReplicas); p[a][b] == 0 && !one {
				missing = append(missing, fmt.Sprintf("%s with %s", element(b), element(a)))
			}
		}
		fmt.Fprintln(out)
	}
	return missing
}

// mayReplace says whether the replica may be taken off the volume and a new, empty
// one be put in its place: it is not InSync, and nobody holds the volume, though
// one that was overtaken may not know that yet. The controller's change goes with
// the next opening, so it fences as that does.
func (s *state) mayReplace(i int) bool {
	st := &s.w.store
	held := st.holder != nil && !st.holder.dead && !st.holder.stopped
	return s.left.replaces > 0 && !held && st.states[i] != volume.InSync && slices.Contains(st.states, volume.InSync)
}

func (s *state) replace(i int) {
	w := s.w
	s.left.replaces--
	w.store.epoch++
	w.store.version++
	w.store.holder = nil
	w.store.states[i], w.store.changes[i], w.store.lives[i] = volume.Outdated, 0, ""
	size := w.store.size
	w.reps[i] = &replicaModel{
		life:  w.reps[i].life, // it may be on the same node
		epoch: int(replica.Unopened(volume.Epoch(w.store.epoch)).Epoch),
		size:  size, volatile: make([]int, size), durable: make([]int, size),
		current: map[int]bool{}, previous: map[int]bool{}, missed: map[int]map[int]bool{},
	}
	for _, r := range w.reps {
		delete(r.missed, i) // it goes by another name
	}
	for k, c := range w.conns {
		if k.leg == i {
			c.broken = true
		}
	}
	w.forgetful &^= bit(i)
}
