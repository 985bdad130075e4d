package core

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var (
	exploreAll = flag.Bool("explore", false, "explore all settings to their ends; without it, a few small ones")
	exploreOne = flag.String("explore.setting", "", "explore this one alone")
)

// explorer searches one setting.
type explorer struct {
	set         setting
	enc         encoder
	encodeWorld *encodeFunc
	reached     *reached
	seen        table
	parents     []uint32 // of each state, in the order found
	steps       []uint16 // which successor of its parent each state is
	healEvery   int
	healed      int
	frontier    int    // the most states that waited at once
	broken      string // what an action showed to be wrong
}

func newExplorer(set setting, r *reached) *explorer {
	x := &explorer{set: set, reached: r, healEvery: 97, encodeWorld: encodeFuncFor(reflect.TypeFor[world]())}
	x.enc.seen = map[unsafe.Pointer]uint64{}
	return x
}

// table is a set of hashes.
type table struct {
	slots []uint64
	n     int
}

func (t *table) add(h uint64) bool {
	if t.n*10 >= len(t.slots)*7 {
		old := t.slots
		t.slots, t.n = make([]uint64, max(1<<16, 2*len(old))), 0
		for _, o := range old {
			if o != 0 {
				t.add(o)
			}
		}
	}
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch t.slots[i] {
		case h:
			return false
		case 0:
			t.slots[i] = h
			t.n++
			return true
		}
	}
}

// start is the first state: a volume that was closed clean, or one that is
// served.
func (x *explorer) start() *state {
	w := newWorld(1, x.set.replicas)
	w.store.size, w.store.wanted, w.turns = x.set.size, x.set.size, x.set.turns
	w.rejoin, w.lease = x.set.rejoin, longLease
	if x.set.fine {
		w.region = 1
	}
	w.registers = w.registers[:0]
	for range x.set.size {
		w.registers = append(w.registers, register{ids: []int{0}})
	}
	for _, r := range w.reps {
		r.size, r.volatile, r.durable = x.set.size, make([]int, x.set.size), make([]int, x.set.size)
	}
	if last := len(w.reps) - 1; x.set.away {
		w.store.states[last] = volume.Outdated
	}
	s := &state{w: w, left: x.set.budget}
	backup := *copyOf(&w.store)
	s.backup = &backup
	w.rng = &chances{other: 1 << 30}
	if x.set.overtaken { // in a volume in which an opening has nothing to record
		w.store.clean, w.store.lives[0] = false, incarnation(w.reps[0].life)
		s.open(&chances{})
		for len(w.swaps) > 0 {
			w.advanceSwap(w.swaps[0], storeFine)
		}
	}
	switch {
	case x.set.opened:
		s.open(&chances{})
		h := w.holders[len(w.holders)-1]
		its := func(m *message) bool { return m.h == h }
		w.carryOut(its)
		w.time = h.m.serveAt
		w.event(h, func() { h.m.Tick(h.m.now) }, "older leases end")
		w.carryOut(its)
	case x.set.behind:
		x.startBehind(s)
	}
	w.rng = nil
	s.tidy()
	return s
}

// startBehind has the last replica return to a volume that was written without it.
func (x *explorer) startBehind(s *state) {
	w, last := s.w, len(s.w.reps)-1
	w.region, w.reps[last].down = 1, true
	w.store.states[last] = volume.Outdated
	if x.set.known {
		w.store.changes[last] = 1
	}
	w.rng = &chances{} // the first holder copies one block at a time, those to come two
	s.open(&chances{})
	w.rng = &chances{other: 1 << 30}
	w.carryOut(butTurns)
	h := w.holders[0]
	for b := range x.set.size {
		w.submit(h, Change, b, 1)
	}
	w.carryOut(butTurns)
	w.submit(h, Flush, 0, 0)
	w.carryOut(butTurns)
	for _, down := range []bool{true, false} { // the first time intent bits are cleared
		w.reps[last].down = down
		w.event(h, func() { h.m.Tick(h.m.now + 100) }, "ticks pass")
		w.carryOut(butTurns)
	}
	for _, r := range w.reps[:last] {
		if !x.set.known { // it is new, and others have noted nothing by its name
			delete(r.missed, last)
		}
		if len(r.current)+len(r.previous) > 0 {
			w.fail("the start leaves intent bits")
		}
	}
}

// butTurns: a resync copies nothing yet.
func butTurns(m *message) bool { return m.a.Kind != AskTurn }

// carryOut lets everything happen in order that these messages bring about.
func (w *world) carryOut(which func(*message) bool) {
	for {
		i := slices.IndexFunc(w.msgs, which)
		switch {
		case len(w.swaps) > 0:
			w.advanceSwap(w.swaps[0], storeFine)
		case i >= 0:
			w.stepMessage(w.msgs[i])
		default:
			return
		}
	}
}

// violation is what is wrong with a state, or "".
func (x *explorer) violation(s *state) string {
	if x.broken != "" {
		return x.broken
	}
	if s.left.used[storeBack] {
		// The store's word is from another time, whatever it says of the replicas;
		// what must hold is that nobody serves by it.
		if strings.HasPrefix(s.w.failure, "after a clean close") || strings.HasPrefix(s.w.failure, "delta: ") {
			s.w.failure = ""
		}
		return s.w.failure
	}
	if s.w.failure != "" {
		return s.w.failure
	}
	return s.w.promisesHold()
}

// run explores until everything was seen, or something is wrong.
func (x *explorer) run() (failure string, path []string) {
	first := x.start()
	if bad := x.violation(first); bad != "" {
		return bad, nil
	}
	x.seen.add(x.hash(first))
	x.parents, x.steps = append(x.parents, 0), append(x.steps, 0)
	type waits struct {
		s  *state
		id uint32
	}
	now := []waits{{first, 0}}
	for len(now) > 0 {
		var later []waits
		for i, cur := range now {
			now[i].s = nil // its memory may go
			k := uint16(0)
			x.expand(cur.s, func(_ happening, n *state) {
				k++
				if failure != "" {
					return
				}
				if failure = x.violation(n); failure != "" {
					path = x.path(cur.id, k-1)
					return
				}
				if !x.seen.add(x.hash(n)) {
					return
				}
				x.parents, x.steps = append(x.parents, cur.id), append(x.steps, k-1)
				id := uint32(len(x.parents) - 1)
				if failure = x.converges(n, int(id)); failure != "" {
					path = x.path(cur.id, k-1)
					return
				}
				later = append(later, waits{n, id})
			})
			if failure == "" && len(x.parents) > x.set.limit {
				failure = fmt.Sprintf("more than %d states: the setting is too large", x.set.limit)
			}
			if failure != "" {
				return failure, path
			}
		}
		x.frontier = max(x.frontier, len(later))
		now = later
	}
	return "", nil
}

// converges repairs everything in a copy of some states: then nothing may be
// left waiting, and all replicas become InSync and equal.
func (x *explorer) converges(s *state, id int) string {
	if id%x.healEvery != 0 || s.left.used[storeBack] {
		return ""
	}
	x.healed++
	c := s.copy()
	c.w.rng = rand.New(rand.NewPCG(uint64(id), 7))
	c.w.heal()
	if c.w.failure != "" {
		return "after repairing everything: " + c.w.failure
	}
	return ""
}

// path tells the history that leads to a state's successor.
func (x *explorer) path(id uint32, last uint16) []string {
	steps := []uint16{last}
	for ; id != 0; id = x.parents[id] {
		steps = append(steps, x.steps[id])
	}
	s := x.start()
	var out []string
	for i := len(steps) - 1; i >= 0; i-- {
		k := uint16(0)
		var next *state
		x.tellingExpand(s, steps[i], &k, func(h happening, n *state, trace []string) {
			next = n
			out = append(out, h.String())
			for _, t := range trace {
				out = append(out, "    "+t)
			}
		})
		s = next
	}
	return out
}

// tellingExpand makes one successor, and tells how.
func (x *explorer) tellingExpand(s *state, want uint16, k *uint16, visit func(happening, *state, []string)) {
	for _, h := range x.possible(s) {
		for script := []int{}; script != nil; *k++ {
			c := &chances{script: script, other: 1 << 30}
			n := s.copy()
			n.w.rng, n.w.tell, n.w.trace = c, true, nil
			x.happen(n, h, c)
			x.settle(n)
			trace := n.w.trace
			n.w.rng, n.w.tell, n.w.trace = nil, false, nil
			n.tidy()
			if *k == want {
				visit(h, n, trace)
			}
			script = c.next()
		}
	}
}

// promisesHold checks the promise that matters most in every single state: what
// was acknowledged and flushed is on every replica that the store calls InSync.
func (w *world) promisesHold() string {
	for b := range w.registers {
		g := &w.registers[b]
		for i, r := range w.reps {
			if w.store.states[i] != volume.InSync || r.failed || int64(b) >= w.store.size {
				continue
			}
			if at := indexOf(g.ids, r.durable[b]); at < g.durable {
				return fmt.Sprintf("block %d: replica %d is InSync and has %d on its disk, but %v was acknowledged and flushed", b, i, r.durable[b], g.ids[g.durable])
			}
		}
	}
	return ""
}

func indexOf(ids []int, id int) int {
	for i, v := range ids {
		if v == id {
			return i
		}
	}
	return -1
}

// TestExplore explores the settings. With -explore it is the whole proof, and
// prints what it found as one line of JSON for the tool that keeps the evidence.
func TestExplore(t *testing.T) {
	var all reached
	total, healed := 0, 0
	for _, set := range settings {
		if *exploreOne != "" && set.name != *exploreOne || *exploreOne == "" && !*exploreAll && set.limit > quickLimit {
			continue
		}
		began := time.Now()
		x := newExplorer(set, &all)
		failure, path := x.run()
		t.Logf("%-40s %8d states, at most %d at once, %d repaired, %v", set.name, len(x.parents), x.frontier, x.healed, time.Since(began).Round(time.Millisecond))
		if failure != "" {
			t.Fatalf("%s: %s\n%s", set.name, failure, strings.Join(path, "\n"))
		}
		total += len(x.parents)
		healed += x.healed
	}
	if !*exploreAll {
		return
	}
	missing := append(all.report(os.Stdout), all.pairs.report(os.Stdout)...)
	if *exploreOne == "" {
		for _, m := range missing {
			t.Errorf("never reached: %s", m)
		}
	}
	line, err := json.Marshal(map[string]int{"states": total, "repaired": healed, "violations": 0})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("EVIDENCE %s\n", line)
}
