package core

import (
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var (
	worldSeeds = flag.Uint64("world.seeds", defaultSeeds, "how many random worlds TestWorld runs")
	worldSeed  = flag.Uint64("world.seed", 0, "run this one alone, and tell its history")
)

// TestWorld runs machines in random worlds: writers, readers and flushes over
// replicas that crash, lose power, fill up and fail, a network that reorders and
// breaks, a store that loses answers, and other holders that take over. After
// every event the machine's invariants and what clients were promised are
// checked; in the end everything is repaired, and then nothing may be left
// waiting and all replicas are equal.
//
// A failure names its seed: go test -run TestWorld -world.seed=N tells all.
func TestWorld(t *testing.T) {
	if *worldSeed != 0 {
		w := runWorld(*worldSeed)
		t.Log("\n" + strings.Join(w.trace, "\n"))
		if w.failure != "" {
			t.Fatal(w.failure)
		}
		return
	}
	failures := 0
	for seed := uint64(1); seed <= *worldSeeds && failures < 3; seed++ {
		if w := runWorld(seed); w.failure != "" {
			failures++
			t.Errorf("seed %d: %s", seed, w.failure)
		}
	}
}

// runWorld runs one world; its first numbers choose how rough it is.
func runWorld(seed uint64) *world {
	w := newWorld(seed, 2+int(seed%2))
	w.tell = *worldSeed != 0
	faults := []int{0, 10, 30, 60}[w.rng.IntN(4)]  // in a thousand steps
	takeover := []int{0, 3, 10, 20}[w.rng.IntN(4)] // likewise
	power, spread := w.rng.IntN(2) == 0, w.rng.IntN(3)
	grows := []int{0, 10, 40}[w.rng.IntN(3)]
	w.turns = w.rng.IntN(2) == 0
	w.newHolder()
	for range 250 {
		if w.failure != "" {
			return w
		}
		switch n := w.rng.IntN(1000); {
		case n < faults:
			w.randomFault(power)
		case n < faults+takeover:
			w.randomHolder()
		case n < faults+takeover+grows:
			if h := w.latest(); h != nil {
				w.growOne(h)
			}
		case n < 220:
			w.randomOp()
		case n < 260:
			w.randomTick()
		default:
			w.randomStep(spread)
		}
	}
	w.heal()
	return w
}

// randomStep lets one message or swap advance; spread says how much they
// overtake each other.
func (w *world) randomStep(spread int) {
	n := len(w.msgs) + len(w.swaps)
	if n == 0 {
		return
	}
	i := w.rng.IntN(n)
	if spread == 0 {
		i = w.rng.IntN(min(n, 2))
	}
	if i < len(w.msgs) {
		w.stepMessage(w.msgs[i])
		return
	}
	c := w.swaps[i-len(w.msgs)]
	if !w.healed && c.h.epoch < w.store.epoch && w.rng.IntN(8) > 0 {
		return // an overtaken holder is often one that can't reach the store
	}
	fault := storeFine
	if !w.healed && w.rng.IntN(6) == 0 {
		fault = storeFault(w.rng.IntN(4))
	}
	w.advanceSwap(c, fault)
}

func (w *world) stepMessage(m *message) {
	switch {
	case m.ready && m.h.dead: // a zombie, or the answer to a dead holder
		w.execute(m)
		w.forget(m)
	case m.ready:
		w.deliver(m)
	case m.a.Seq > 0 && !w.healed && w.rng.IntN(16) == 0: // its answer is late: it may happen at any time
		m.ready, m.res = true, Lost
	default:
		w.execute(m)
	}
}

func (w *world) forget(m *message) {
	for i := range w.msgs {
		if w.msgs[i] == m && (m.executed || w.rng.IntN(2) == 0) {
			w.msgs = append(w.msgs[:i], w.msgs[i+1:]...)
			return
		}
	}
}

func (w *world) randomOp() {
	var alive []*holder
	for _, h := range w.holders {
		if !h.dead && !h.stopped && h.m.phase > Taking && h.m.phase < Draining && len(h.m.waiting) < 4 {
			alive = append(alive, h)
		}
	}
	if len(alive) == 0 {
		if w.latest() == nil {
			w.newHolder()
		}
		return
	}
	h := alive[w.rng.IntN(len(alive))]
	size := int(h.m.Size())
	off := w.rng.IntN(size)
	n := 1 + w.rng.IntN(size-off)
	switch w.rng.IntN(10) {
	case 0, 1:
		w.submit(h, Flush, 0, 0)
	case 2, 3, 4:
		w.submit(h, Read, int64(off), int64(n))
	default:
		w.submit(h, Change, int64(off), int64(n))
	}
}

func (w *world) randomTick() {
	by := int64(1 + w.rng.IntN(8))
	w.time += by
	for _, h := range w.holders {
		if w.rng.IntN(4) == 0 {
			continue // its process is stopped: it does not notice
		}
		w.event(h, func() { h.m.Tick(h.m.now + by) }, "%d ticks pass", by)
	}
}

func (w *world) randomFault(power bool) {
	leg := w.rng.IntN(len(w.reps))
	r := w.reps[leg]
	switch w.rng.IntN(9) {
	case 0:
		w.crash(leg, power)
	case 1, 2, 3:
		r.down = false
	case 4:
		if h := w.latest(); h != nil {
			s, _ := h.m.Session(leg)
			w.breakConn(h, leg, s)
		}
	case 5:
		r.full = true
	case 6, 7:
		r.full = false
	case 8:
		w.breakDisk(leg)
	}
}

// breakDisk fails a replica for good, unless it is the last of the good ones.
func (w *world) breakDisk(leg int) {
	good := 0
	for i, r := range w.reps {
		if !r.failed && w.store.states[i] == volume.InSync {
			good++
		}
	}
	if good == len(w.reps) && w.rng.IntN(3) == 0 {
		w.logf("replica %d fails", leg)
		w.reps[leg].failed = true
	}
}

func (w *world) randomHolder() {
	h := w.latest()
	if h == nil {
		w.newHolder()
		return
	}
	switch w.rng.IntN(5) {
	case 0:
		w.newHolder()
	case 1:
		w.logf("%v dies", h)
		h.dead = true
		w.newHolder()
	case 2:
		w.event(h, h.m.Close, "close")
	case 3:
		w.event(h, h.m.Abort, "abort")
	case 4:
		if w.store.epoch > h.epoch && h.epoch > 0 {
			w.event(h, func() { h.m.Superseded("a newer epoch was seen") }, "superseded")
		}
	}
}

func (w *world) growOne(h *holder) {
	if h.m.phase == Serving && h.m.Size() < 6 {
		size := h.m.Size() + int64(1+w.rng.IntN(2))
		h.grows = append(h.grows, size)
		w.event(h, func() { h.m.Grow(size) }, "grow to %d", size)
	}
}

// heal repairs everything and lets time pass: nothing may stay behind.
func (w *world) heal() {
	w.healed = true
	w.logf("--- healed")
	for _, r := range w.reps {
		r.down, r.full = false, false
	}
	w.drain()
	w.checkNothingWaits()
	last := w.latest()
	if w.failure != "" {
		return
	}
	if last != nil {
		w.event(last, last.m.Close, "close")
		w.drain()
	}
	if w.failure == "" {
		w.reopenAll()
	}
}

func (w *world) drain() {
	for range 30 { // longer than any pause or patience
		w.time += w.lease
		for n := 0; len(w.msgs)+len(w.swaps) > 0 && n < 2000 && w.failure == ""; n++ {
			w.randomStep(0)
		}
		for _, h := range w.holders {
			if !h.stopped {
				w.event(h, func() { h.m.Tick(h.m.now + 4) }, "ticks pass")
			}
		}
	}
}

// checkNothingWaits: with everything repaired, every request was answered, and
// no leg is taken for connected that is not.
func (w *world) checkNothingWaits() {
	for _, h := range w.holders {
		if h.dead {
			continue
		}
		for _, op := range h.ops {
			if op.reply == 0 {
				w.fail("%v: op %d was never answered: %v", h, op.id, h.m)
			}
		}
		if h.stopped {
			continue
		}
		if len(h.grows) > 0 {
			w.fail("%v: growing to %v was never answered: %v", h, h.grows, h.m)
		}
		failed := slices.ContainsFunc(w.reps, func(r *replicaModel) bool { return r.failed }) // the source of a rebuild, it may be
		if h.m.phase != Serving || !failed && len(h.m.inflight)+len(h.m.waiting) > 0 {
			w.fail("%v is stuck: %v", h, h.m)
		}
		if h.m.Dirty() > 0 && !failed {
			w.fail("%v: dirty regions are never corrected: %v", h, h.m)
		}
		for i := range w.reps {
			if s, up := h.m.Session(i); up && h == w.latest() && w.conns[h.key(i, s)].broken {
				w.fail("%v believes in the broken connection of leg %d: %v", h, i, h.m)
			}
		}
	}
}

// reopenAll opens the volume once more: all replicas that did not fail become
// InSync, and the volume closes clean.
func (w *world) reopenAll() {
	usable := false
	for i, r := range w.reps {
		usable = usable || !r.failed && w.store.states[i] == volume.InSync
	}
	if !usable {
		return // the last InSync disk broke
	}
	h := w.newHolder()
	w.drain()
	w.submit(h, Read, 0, w.store.size)
	w.drain()
	if h.stopped || len(h.ops) == 0 || h.ops[0].reply != 1 {
		w.fail("the repaired volume does not serve: %v", h.m)
	}
	for i, r := range w.reps {
		if !r.failed && w.store.states[i] != volume.InSync {
			w.fail("replica %d stays %s: %v", i, w.store.states[i], h.m)
		}
	}
	w.event(h, h.m.Close, "close")
	w.drain()
	if w.failure == "" && (!w.store.clean || w.store.holder != nil) {
		w.fail("the repaired volume does not close: %v", h.m)
	}
	for i, r := range w.reps {
		if n := len(r.current) + len(r.previous); w.failure == "" && n > 0 && w.store.states[i] == volume.InSync && len(w.reps) > 1 {
			w.fail("replica %d has %d intent bits after a clean close", i, n)
		}
	}
}
