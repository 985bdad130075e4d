package sim

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
)

// faultKinds and situations must all occur; a run in which one does not proves
// less than it seems.
var (
	faultKinds = []string{
		"replica process crash", "node reboot", "crash in the middle of an operation", "connection broken", "partition one way", "partition both ways", "network split", "writer crash",
		"writer paused", "second writer", "power loss of all", "disk slow", "disk error", "disk full", "store unreachable", "store flaky",
		"swap lost", "swap's answer lost", "swap late",
	}
	situations = []string{
		"opening", "serving", "clean close", "unclean takeover", "fence refused", "leg dropped", "leg promoted", "resync begun",
		"resync interrupted", "resync resumed", "progress of a resync noted", "rebuild's delta is known", "copy", "copy failed", "swap in doubt", "late swap landed", "late swap refused", "no space", "paused for space",
		"request of an ended session refused", "bytes arrive after their connection broke", "read sent again", "unflushed blocks lost",
		"serving after a power loss", "serving from those that kept their power", "leg rejoined", "incarnation refused", "copy of nothing: hashes are equal", "replica grown", "volume grown", "replica replaced", "stopped: fenced", "stopped: ok",
	}
)

// counts is what happened in all histories of a run.
type counts struct {
	Seeds, Writes, Reads, Flushes, Trims int64
	Lost, Diverged, Stuck                int64
	faults, reached                      map[string]int64
}

func newCounts() *counts { return &counts{faults: map[string]int64{}, reached: map[string]int64{}} }

func (k *counts) fault(kind string) { k.faults[kind]++ }
func (k *counts) reach(what string) { k.reached[what]++ }

func (k *counts) faultsTotal() (n int64) {
	for v := range maps.Values(k.faults) {
		n += v
	}
	return n
}

// report lists the counts and returns what never occurred.
func (k *counts) report(w io.Writer) (missing []string) {
	list := func(title string, names []string, m map[string]int64) {
		for _, n := range names {
			fmt.Fprintf(w, "%s %10d  %s\n", title, m[n], n)
			if m[n] == 0 {
				missing = append(missing, n)
			}
		}
		for _, n := range slices.Sorted(maps.Keys(m)) {
			if !slices.Contains(names, n) {
				fmt.Fprintf(w, "%s %10d  %s\n", title, m[n], n)
			}
		}
	}
	list("fault    ", faultKinds, k.faults)
	list("situation", situations, k.reached)
	return missing
}

// randomFault strikes, and comes again.
func (c *cluster) randomFault() {
	if c.healed {
		return
	}
	c.after(c.pause(c.rough.faultEvery), c.randomFault)
	i := c.rng.IntN(len(c.nodes))
	n, h := c.nodes[i], c.current
	switch c.rng.IntN(24) {
	case 0:
		if n.up {
			c.counts.fault("replica process crash")
			n.stop(false)
			c.after(c.pause(3000), n.start)
		}
	case 1:
		if n.up && c.rough.power {
			c.counts.fault("node reboot")
			n.stop(true)
			c.after(c.pause(4000), n.start)
		}
	case 2, 3:
		if n.live != nil && !n.live.broken {
			c.counts.fault("connection broken")
			n.live.lose("connection reset")
		}
	case 4, 5:
		c.partition(h.node, i, c.rng.IntN(3))
	case 6:
		c.counts.fault("writer crash")
		c.logf("h%d dies", h.id)
		h.dead = true
		for _, cn := range h.conns {
			if cn != nil {
				cn.drop()
			}
		}
	case 7:
		c.pauseWriter(h, []int64{300, 3000, 10_000}[c.rng.IntN(3)])
	case 8:
		c.takeOver(c.rng.IntN(len(c.nodes) + 1))
	case 9:
		if c.rough.power && c.rng.IntN(3) == 0 {
			c.powerLoss()
		}
	case 10, 11:
		c.counts.fault("disk slow")
		n.slow = c.pause(1500)
		c.after(c.pause(3000), func() { n.slow = 0 })
	case 12:
		n.disk.failIn = 1 + c.rng.IntN(40)
	case 13:
		c.counts.fault("disk full")
		n.disk.full = true
		c.after(c.pause(3000), func() { n.disk.full = false })
	case 14:
		c.counts.fault("store unreachable")
		at := h.node
		c.storeCut[at] = true
		c.after(c.pause(3000), func() { c.storeCut[at] = false })
	case 15:
		h.step(func(m *core.Machine) { m.Close() }, "close")
	case 16:
		if c.store.epoch > h.epoch && h.epoch > 0 {
			h.step(func(m *core.Machine) { m.Superseded("a newer epoch was seen") }, "superseded")
		}
	case 18, 19:
		if n.up {
			c.counts.fault("crash in the middle of an operation")
			n.disk.crashIn = 1 + c.rng.IntN(30)
		}
	case 20:
		if size := c.store.size; size < (grownFrom+2*growth)*blockBytes {
			h.step(func(m *core.Machine) { m.Grow(size + growth*blockBytes) }, "grow")
		}
	case 22, 23:
		c.counts.fault("store flaky")
		c.flaky = true
		c.after(c.pause(3000), func() { c.flaky = false })
	case 21:
		c.split(h.node)
	case 17:
		c.rough.delay = []int64{2, 10, 60, 300}[c.rng.IntN(4)]
	}
}

// pauseWriter stops a writer's process for a while. For the most part somebody else
// takes over meanwhile.
func (c *cluster) pauseWriter(h *holder, mean int64) {
	if h.dead || h.stopped {
		return
	}
	c.counts.fault("writer paused")
	h.pausedUntil = c.now + c.pause(mean)
	c.logf("h%d is paused until %d", h.id, h.pausedUntil)
	if h == c.current && c.rng.IntN(3) > 0 {
		c.after(c.pause(mean/2), func() {
			if h == c.current {
				c.takeOver(c.rng.IntN(len(c.nodes) + 1))
			}
		})
	}
}

// partition cuts the network between two nodes, in one direction or both.
func (c *cluster) partition(a, b, way int) {
	if a == b {
		return
	}
	kind := "partition one way"
	if way == 2 {
		kind = "partition both ways"
	}
	c.counts.fault(kind)
	c.logf("partition %d %d way %d", a, b, way)
	c.cut[a][b] = c.cut[a][b] || way != 1
	c.cut[b][a] = c.cut[b][a] || way != 0
	c.after(c.pause(4000), func() {
		c.logf("partition %d %d ends", a, b)
		c.cut[a][b], c.cut[b][a] = false, false
	})
}

// takeOver has somebody use the volume although its writer lives, be it cut off or not.
func (c *cluster) takeOver(node int) {
	if c.healed {
		return
	}
	c.counts.fault("second writer")
	c.newHolderOn(node)
}

// split parts the network in two: on one side the writer, on the other the store,
// where somebody takes over.
func (c *cluster) split(writer int) {
	c.counts.fault("network split")
	side := make([]bool, len(c.cut))
	for i := range side {
		side[i] = i == writer || c.rng.IntN(3) == 0
	}
	c.logf("network split: %v", side)
	set := func(cut bool) {
		for i := range side {
			c.storeCut[i] = side[i] && cut
			for j := range side {
				if side[i] != side[j] {
					c.cut[i][j] = cut
				}
			}
		}
	}
	set(true)
	c.after(1000+c.pause(6000), func() { set(false) })
	c.after(c.rng.Int64N(3000), func() {
		if i := slices.Index(side, false); i >= 0 {
			c.takeOver(i)
		}
	})
}

func (c *cluster) powerLoss() {
	c.counts.fault("power loss of all")
	c.logf("power loss of all")
	for _, n := range c.nodes {
		n.stop(true)
		c.after(c.pause(3000), n.start)
	}
	for _, h := range c.holders {
		h.dead = true
	}
}
