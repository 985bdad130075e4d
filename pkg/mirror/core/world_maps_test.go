package core

import (
	"maps"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// incarnation names a replica's life.
func incarnation(life int) volume.Incarnation { return volume.Incarnation(rune('a' + life)) }

// readMap answers ReadMap at a replica.
func (w *world) readMap(r *replicaModel, a Action) *bitmap.Set {
	if !w.healed && w.rng.IntN(8) == 0 {
		return nil // a page of it was torn
	}
	s := bitmap.New((int(r.size) + w.region - 1) / w.region)
	add := func(set map[int]bool) {
		for i := range set {
			s.Add(i)
		}
	}
	switch a.Map {
	case MapAllocated:
		for b, v := range r.volatile {
			if v != 0 {
				s.Add(b / w.region)
			}
		}
	case MapMissed:
		add(r.missed[a.About])
		fallthrough
	default:
		add(r.current)
		add(r.previous)
	}
	return s
}

// rotate begins a generation of intent bits.
func (r *replicaModel) rotate(seq uint64) Result {
	if seq <= r.rotation {
		return Refused
	}
	maps.Copy(r.previous, r.current)
	clear(r.current)
	r.rotation = seq
	return OK
}

// dropPrevious puts older intent bits into what others missed.
func (r *replicaModel) dropPrevious(a Action) Result {
	if a.Seq != r.rotation {
		return Refused
	}
	missed := map[int]map[int]bool{}
	for _, leg := range a.Away {
		if missed[leg] = r.missed[leg]; missed[leg] == nil {
			missed[leg] = map[int]bool{}
		}
		maps.Copy(missed[leg], r.previous)
	}
	r.missed = missed
	clear(r.previous)
	return OK
}
