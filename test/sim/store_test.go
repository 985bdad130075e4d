package sim

import (
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// store is the volume's object.
type store struct {
	version int
	epoch   volume.Epoch
	holder  *holder
	states  []volume.ReplicaState
	changes []uint64
	ids     []string // what replicas call each other; a replica that was made anew has another
	made    int      // IDs given
	kept    []volume.Incarnation
	size    int64
	clean   bool
}

// swap is one compare-and-swap: a read, then a conditioned write, each of which
// may be lost, or come late.
type swap struct{ w core.Wants }

func (h *holder) swap(w core.Wants) {
	s := &swap{w: w}
	h.swaps = append(h.swaps, s)
	h.c.after(h.c.delay(), func() { h.trySwap(s) })
}

func (h *holder) trySwap(s *swap) {
	c := h.c
	unknown := func() { c.after(rpcTimeout/3, func() { h.swapped(s, core.Unknown, core.Taken{}) }) }
	if c.storeCut[h.node] {
		unknown()
		return
	}
	fault := 9
	if !c.healed {
		if fault = c.rng.IntN(40); c.flaky {
			fault = c.rng.IntN(4)
		}
	}
	switch {
	case !c.store.holds(h, &s.w):
		c.after(c.delay(), func() { h.swapped(s, core.Fenced, core.Taken{}) })
	case fault == 0:
		c.counts.fault("swap lost")
		unknown()
	case fault == 1:
		c.counts.fault("swap's answer lost")
		t := c.land(h, &s.w)
		if s.w.Take { // the nonce tells
			c.after(rpcTimeout/3, func() { h.swapped(s, core.OK, t) })
			return
		}
		unknown()
	case fault == 2 && !s.w.Take:
		c.counts.fault("swap late")
		version := c.store.version
		c.late = append(c.late, s)
		c.after(c.pause(3000), func() {
			c.late = slices.DeleteFunc(c.late, func(x *swap) bool { return x == s })
			if c.store.version != version {
				c.counts.reach("late swap refused")
				return
			}
			c.counts.reach("late swap landed")
			c.land(h, &s.w)
		})
		unknown()
	default:
		t := c.land(h, &s.w)
		c.after(c.delay(), func() { h.swapped(s, core.OK, t) })
	}
}

func (h *holder) swapped(s *swap, res core.Result, t core.Taken) {
	h.removeSwap(s)
	if s.w.Take {
		if res == core.Unknown {
			res = core.Lost
		}
		h.step(func(m *core.Machine) { m.TakeDone(res, t) }, "take: %v", res)
		return
	}
	if res == core.Unknown {
		h.c.counts.reach("swap in doubt")
	}
	h.step(func(m *core.Machine) { m.SwapDone(res) }, "swap: %v", res)
}

func (s *store) holds(h *holder, w *core.Wants) bool {
	return w.Take || s.holder == h && s.epoch == h.epoch
}

// land is a compare-and-swap that succeeds.
func (c *cluster) land(h *holder, w *core.Wants) core.Taken {
	s := &c.store
	s.version++
	if w.Take {
		c.replaceOne()
		h.names = slices.Clone(s.ids)
		t := core.Taken{States: slices.Clone(s.states), Changes: slices.Clone(s.changes), Incarnations: slices.Clone(s.kept), Reasons: make([]string, len(s.states)), Size: s.size, WasClean: s.clean}
		if !s.clean {
			c.counts.reach("unclean takeover")
		}
		s.epoch++
		s.holder, s.clean = h, false
		h.epoch = s.epoch
		c.logf("store: epoch %d for h%d", s.epoch, h.id)
		return t
	}
	for i, st := range w.States {
		switch {
		case s.states[i] == st:
		case s.states[i] == volume.InSync:
			c.counts.reach("leg dropped")
		case st == volume.InSync:
			c.counts.reach("leg promoted")
			c.nodes[i].countResumed(h)
		case st == volume.Rebuilding:
			c.counts.reach("resync begun")
		case s.states[i] == volume.Rebuilding:
			c.counts.reach("resync interrupted")
		}
	}
	for i, change := range w.Changes {
		if change != s.changes[i] && s.states[i] != volume.InSync && w.States[i] != volume.InSync {
			c.counts.reach("rebuild's delta is known")
		}
	}
	if w.Paused {
		c.counts.reach("paused for space")
	}
	copy(s.states, w.States)
	copy(s.changes, w.Changes)
	copy(s.kept, w.Incarnations)
	s.size = w.Size
	if w.Release {
		s.holder, s.clean = nil, w.Clean
		if w.Clean {
			c.counts.reach("clean close")
		}
	}
	c.logf("store: %v holder h%d clean %v", s.states, h.id, s.clean)
	if !slices.Contains(s.states, volume.InSync) {
		c.fail("lost", "no replica is InSync")
	}
	return core.Taken{}
}

func (s *store) newID(replica int) {
	s.made++
	s.ids[replica] = fmt.Sprintf("r%d", s.made)
}

// replaceOne sometimes replaces a replica that is not InSync, as the controller
// does: it is taken off by who took an epoch for that, and the new one is made
// after that. The holder to come finds it.
func (c *cluster) replaceOne() {
	for i, n := range c.nodes {
		if c.store.states[i] == volume.InSync || !n.up || c.rng.IntN(6) > 0 {
			continue
		}
		c.store.epoch++
		c.store.holder = nil
		n.replace()
		c.store.states[i], c.store.changes[i], c.store.kept[i] = volume.Outdated, 0, ""
		c.store.newID(i)
		return
	}
}
