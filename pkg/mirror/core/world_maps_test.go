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

// dropPrevious puts older intent bits into what others missed, and takes from it what
// they have got since.
func (w *world) dropPrevious(r *replicaModel, a Action) Result {
	if a.Seq != r.rotation {
		return Refused
	}
	missed := map[int]map[int]bool{}
	for _, o := range a.Away {
		if missed[o.Leg] = r.missed[o.Leg]; missed[o.Leg] == nil {
			missed[o.Leg] = map[int]bool{}
		}
		maps.Copy(missed[o.Leg], r.previous)
		w.note(missed[o.Leg], r, o.Progress)
	}
	r.missed = missed
	clear(r.previous)
	return OK
}

// dropCopied clears older intent bits of a replica that is resynced, as far as it is.
func (w *world) dropCopied(r *replicaModel, a Action) Result {
	if a.Seq != r.rotation {
		return Refused
	}
	w.note(r.previous, r, a.Progress)
	return OK
}

// note writes a resync's progress down.
func (w *world) note(set map[int]bool, r *replicaModel, p volume.Progress) {
	if p.Whole {
		for b, v := range r.volatile {
			if v != 0 {
				set[b/w.region] = true
			}
		}
	}
	maps.DeleteFunc(set, func(i int, _ bool) bool { return int64(i*w.region) < p.Below })
}
