package core

import (
	"flag"
	"fmt"
	"testing"
)

var faultBudget = flag.Int("world.faults", defaultFaults, "how many faults TestEveryPlacementOfFaults puts into one history")

// TestEveryPlacementOfFaults runs one short history, with all messages in order,
// again and again: every fault before every step, and every two of them (only
// every single one under the race detector).
func TestEveryPlacementOfFaults(t *testing.T) {
	runs, failures := 0, 0
	var place func(faults []placedFault, depth int)
	place = func(faults []placedFault, depth int) {
		w, steps := runScript(faults)
		if runs++; w.failure != "" {
			failures++
			t.Errorf("faults %v: %s", faults, w.failure)
		}
		if depth == 0 || failures > 2 {
			return
		}
		first := 0
		if n := len(faults); n > 0 {
			first = faults[n-1].step
		}
		for at := first; at < steps && failures <= 2; at++ {
			for k := range scriptFaults {
				place(append(faults[:len(faults):len(faults)], placedFault{at, k}), depth-1)
			}
		}
	}
	place(nil, *faultBudget)
	t.Logf("%d histories", runs)
}

// placedFault is a fault, as an index into scriptFaults, before a step.
type placedFault struct{ step, fault int }

func (p placedFault) String() string { return fmt.Sprintf("%s@%d", scriptFaults[p.fault].name, p.step) }

var scriptFaults = []struct {
	name string
	do   func(w *world)
}{
	{"kill0", func(w *world) { w.crash(0, false) }},
	{"cut1", func(w *world) { w.crash(1, true) }},
	{"back", func(w *world) { w.reps[0].down, w.reps[1].down = false, false }},
	{"break1", func(w *world) {
		if h := w.latest(); h != nil {
			s, _ := h.m.Session(1)
			w.breakConn(h, 1, s)
		}
	}},
	{"late", func(w *world) { w.nextFault = storeLate }},
	{"deaf", func(w *world) { w.nextFault = storeAfter }},
	{"takeover", func(w *world) { w.newHolder() }},
	{"crash", func(w *world) {
		if h := w.latest(); h != nil {
			h.dead = true
		}
		w.newHolder()
	}},
	{"close", func(w *world) {
		if h := w.latest(); h != nil {
			w.event(h, h.m.Close, "close")
		}
	}},
	{"hold", func(w *world) { w.behind = len(w.msgs) + len(w.swaps) }},
}

// runScript runs the history with these faults: writes, a read and a flush, in
// between each of which the world moves on by a few steps.
func runScript(faults []placedFault) (*world, int) {
	w := newWorld(1, 2)
	w.newHolder()
	kinds := []Kind{Change, Change, Read, Flush, Change, Read}
	steps := 0
	for i := 0; i < 36 && w.failure == ""; i++ {
		for _, f := range faults {
			if f.step == steps {
				scriptFaults[f.fault].do(w)
			}
		}
		steps++
		if h := w.latest(); h != nil && i%6 == 4 {
			k := kinds[i/6]
			off, n := int64(i/6%2), int64(1)
			if k == Flush {
				off, n = 0, 0
			}
			w.submit(h, k, off, n)
		}
		if i%12 == 11 {
			for _, h := range w.holders {
				w.event(h, func() { h.m.Tick(h.m.now + 4) }, "ticks pass")
			}
		}
		w.oldestStep()
	}
	w.heal()
	return w, steps
}

// oldestStep lets the oldest swap, else the oldest message, advance; those that
// a fault has put behind come last.
func (w *world) oldestStep() {
	switch n := len(w.msgs); {
	case len(w.swaps) > 0:
		fault := w.nextFault
		if !w.swaps[0].answered {
			w.nextFault = storeFine
		}
		w.advanceSwap(w.swaps[0], fault)
	case n > 0:
		w.stepMessage(w.msgs[min(w.behind, n-1)])
	}
}
