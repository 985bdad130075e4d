package sim

import (
	"maps"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
)

// regionBlocks is how many blocks a region has.
const regionBlocks = 2

// tracker is a replica's write-intent bitmap and what others missed; all of it
// is durable at once.
type tracker struct {
	current, previous map[int]bool
	missed            map[int]map[int]bool
	generation        uint64
}

func newTracker() tracker {
	return tracker{current: map[int]bool{}, previous: map[int]bool{}, missed: map[int]map[int]bool{}}
}

func (t *tracker) age(generation uint64) {
	maps.Copy(t.previous, t.current)
	clear(t.current)
	t.generation = generation
}

func (t *tracker) intend(off, length int64) {
	for b := off / blockBytes; b < (off+length)/blockBytes; b++ {
		t.current[int(b)/regionBlocks] = true
	}
}

func (t *tracker) drop(a core.Action) core.Result {
	if a.Seq != t.generation {
		return core.Refused
	}
	missed := map[int]map[int]bool{}
	for _, leg := range a.Away {
		missed[leg] = map[int]bool{}
		maps.Copy(missed[leg], t.missed[leg])
		maps.Copy(missed[leg], t.previous)
	}
	t.missed = missed
	clear(t.previous)
	return core.OK
}

func (n *node) regions(a core.Action) *bitmap.Set {
	set := bitmap.New((len(n.vol) + regionBlocks - 1) / regionBlocks)
	add := func(of map[int]bool) {
		for i := range of {
			set.Add(i)
		}
	}
	if a.Map == core.MapAllocated {
		for b, v := range n.vol {
			if v != 0 {
				set.Add(b / regionBlocks)
			}
		}
		return set
	}
	add(n.track.current)
	add(n.track.previous)
	if a.Map == core.MapMissed {
		add(n.track.missed[a.About])
	}
	return set
}

// control is a call to a node's agent under a session: it may be lost on either
// way, or be carried out late.
func (h *holder) control(a core.Action) {
	c, done := h.c, false
	answer := func(res core.Result, set *bitmap.Set) {
		if done {
			return
		}
		done = true
		h.step(func(m *core.Machine) {
			switch a.Kind {
			case core.ReadMap:
				m.MapRead(a, res, set)
			case core.Rotate:
				m.Rotated(a, res)
			default:
				m.Dropped(a, res)
			}
		}, "control %d of leg %d: %v", a.Kind, a.Leg, res)
	}
	c.after(rpcTimeout, func() { answer(core.Lost, nil) })
	c.after(c.delay(), func() {
		if c.cut[h.node][a.Leg] {
			return
		}
		res, set := c.nodes[a.Leg].control(h, a)
		c.after(c.delay(), func() {
			if !c.cut[a.Leg][h.node] {
				answer(res, set)
			}
		})
	})
}

func (n *node) control(h *holder, a core.Action) (core.Result, *bitmap.Set) {
	switch cn := n.live; {
	case !n.up:
		return core.Lost, nil
	case cn == nil || cn.h != h || cn.session != a.Session:
		n.c.counts.reach("control of an ended session refused")
		return core.Fenced, nil
	case n.failed:
		return core.Broken, nil
	}
	switch a.Kind {
	case core.ReadMap:
		n.c.counts.reach("map read: " + a.Map.String())
		return core.OK, n.regions(a)
	case core.Rotate:
		if a.Seq <= n.track.generation {
			return core.Refused, nil
		}
		n.track.age(a.Seq)
		return core.OK, nil
	}
	if len(a.Away) > 0 {
		n.c.counts.reach("intent bits become what others missed")
	}
	n.c.counts.reach("intent bits cleared")
	return n.track.drop(a), nil
}
