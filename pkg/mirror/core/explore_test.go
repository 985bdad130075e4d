package core

import (
	"cmp"
	"fmt"
	"slices"
	"unsafe"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// The explorer drives the same worlds as TestWorld, but instead of drawing one
// history it makes every choice that there is: it copies the world, machines
// included, lets one thing happen, and goes on from every state that it has not
// seen before, breadth first. So the first violation found is a shortest one.

// setting is one small world and what may happen in it. Numbers are budgets for
// one history.
type setting struct {
	name     string
	replicas int
	size     int64 // blocks
	opened   bool  // begin with a holder that serves
	budget   budget
	shapes   []shape // clients' requests
	faults   []fault // each costs one of budget.faults
	limit    int     // states; more fails the run
	// apart: a request's execution and its answer are two steps, and so are the
	// pieces of news of one broken connection. Else an answer comes at once: what a
	// late one could bring about, a late request does too.
	apart bool
	// turns: a turn to copy comes when it likes, else at once.
	turns bool
	// rejoin: ticks that an InSync leg that was lost is waited for.
	rejoin int64
	// away: the last replica is Outdated at first, and empty.
	away bool
	// overtaken: that replica was brought in sync by a second holder, while the first
	// took its epoch and has not opened a replica yet. With away.
	overtaken bool
	// behind: begin with a holder that serves two blocks, both of which the last replica,
	// which is Outdated, lacks; its resync waits for its first turn. With known the
	// other replicas are believed about it.
	behind, known bool
	// last, unless it is 0: no fault strikes after this one.
	last fault
	// fine: a region is one block.
	fine bool
	// early: clients ask before the volume is served, too.
	early bool
}

// budget is what is left of a setting's allowances.
type budget struct {
	faults, holders, ops, ticks, grows, closes, replaces int8
	// atOnce is how many requests a client has under way.
	atOnce int8
	used   [len(faultNames)]bool // faults that this history has met; each kind once
}

type shape struct {
	kind   Kind
	off, n int64
}

type fault uint8

// The faults. Some are placed on every replica in turn.
const (
	crashProcess fault = iota // a replica's process ends; its page cache stays
	rebootNode                // a replica's node reboots: any of its unflushed blocks are lost
	breakConn                 // a connection breaks; its bytes may still arrive
	killHolder                // a writer's process ends
	powerLoss                 // of everything at once
	swapBefore                // a swap that fails without an answer
	swapAfter                 // a swap that succeeds without an answer
	swapLate                  // a swap without an answer that arrives later
	fullPool                  // a replica has no space, until it has
	brokenDisk                // a replica's disk fails for good
	takeOver                  // another holder, while the present one lives
	silence                   // time passes in which nobody answers
	storeBack                 // the store is restored from a backup
	cutOff                    // one holder can't reach a replica that others do, from its opening on
)

var faultNames = [...]string{
	"replica crashes", "node reboots and forgets", "connection breaks", "writer crashes", "power loss of all",
	"swap lost on its way", "swap's answer lost", "swap arrives late", "pool full", "disk fails", "second writer",
	"silence", "store set back", "opening cut off",
}

// state is a world and what may still happen to it.
type state struct {
	w      *world
	left   budget
	backup *storeModel // what the store would be set back to
	met    met         // in the history by which it was first found
}

// happening is one thing that may happen next.
type happening struct {
	what happens
	i, j int
}

type happens uint8

const (
	messageMoves happens = iota
	swapMoves
	clientAsks
	nextHolder
	timePasses
	holderGrows
	holderCloses
	replicaReturns
	spaceReturns
	replicaReplaced
	leaseEnds
	faultStrikes
)

func (h happening) String() string {
	switch h.what {
	case faultStrikes:
		return fmt.Sprintf("%s (%d)", faultNames[h.i], h.j)
	default:
		return fmt.Sprintf("%s %d %d", [...]string{"message", "swap", "client", "next holder", "time", "grow", "close", "replica returns", "space returns", "replica is replaced", "older leases end"}[h.what], h.i, h.j)
	}
}

// chances takes the place of the world's generator: each draw between two is a
// choice that the explorer makes both ways, others always come out the same.
type chances struct {
	script, taken []int
	other         int // what a draw among more than two gives
}

// IntN implements the world's generator.
func (c *chances) IntN(n int) int {
	if n != 2 {
		return min(c.other, n-1)
	}
	v := 0
	if k := len(c.taken); k < len(c.script) {
		v = c.script[k]
	}
	c.taken = append(c.taken, v)
	return v
}

// next is the script that comes after the one just run, or nil.
func (c *chances) next() []int {
	for i := len(c.taken) - 1; i >= 0; i-- {
		if c.taken[i] == 0 {
			return append(slices.Clone(c.taken[:i]), 1)
		}
	}
	return nil
}

// never is the machine of a holder that is no more.
var never = &Machine{phase: Stopped, legs: make([]leg, MaxLegs)}

func (s *state) copy() *state {
	return &state{w: copyOf(s.w, unsafe.Pointer(never)), left: s.left, backup: s.backup, met: s.met}
}

// expand makes every successor.
func (x *explorer) expand(s *state, visit func(h happening, next *state)) {
	for _, h := range x.possible(s) {
		for script := []int{}; script != nil; {
			c := &chances{script: script, other: 1 << 30}
			n := s.copy()
			n.w.rng = c
			n.w.onAction = x.saw
			x.happen(n, h, c)
			x.settle(n)
			n.w.rng, n.w.onAction = nil, nil
			x.compare(s, n)
			n.notes(x, h)
			x.reached.pairs.count(n.met)
			n.tidy()
			visit(h, n)
			script = c.next()
		}
	}
}

// possible lists what may happen next.
func (x *explorer) possible(s *state) []happening {
	var out []happening
	add := func(what happens, i, j int) { out = append(out, happening{what, i, j}) }
	for i := range s.w.msgs {
		add(messageMoves, i, 0)
	}
	for i := range s.w.swaps {
		add(swapMoves, i, 0)
	}
	alive := 0
	for i, h := range s.w.holders {
		if h.dead {
			continue
		}
		alive++
		if h.m.phase == Recording && !h.m.oldLeasesOver() {
			add(leaseEnds, i, 0)
		}
		if s.left.ops > 0 && len(h.ops) < int(s.left.atOnce) && (h.m.phase == Serving || x.set.early && h.m.phase < Serving) {
			for j, sh := range x.set.shapes {
				if sh.off+sh.n <= max(h.m.Size(), x.set.size) {
					add(clientAsks, i, j)
				}
			}
		}
		if s.left.grows > 0 && h.m.phase == Serving && h.m.growTo == 0 {
			add(holderGrows, i, 0)
		}
		if s.left.closes > 0 && h.m.phase < Draining {
			add(holderCloses, i, 0)
		}
	}
	if alive == 0 && s.left.holders > 0 {
		add(nextHolder, 0, 0)
	}
	for i := range s.w.reps {
		if s.mayReplace(i) {
			add(replicaReplaced, i, 0)
		}
	}
	if s.left.ticks > 0 && alive > 0 {
		add(timePasses, 4, 0)
	}
	for i, r := range s.w.reps {
		if r.down {
			add(replicaReturns, i, 0)
		}
		if r.full {
			add(spaceReturns, i, 0)
		}
	}
	if s.left.faults > 0 && (x.set.last == 0 || !s.left.used[x.set.last]) {
		for _, f := range x.set.faults {
			x.placesOf(s, f, func(j int) { add(faultStrikes, int(f), j) })
		}
	}
	return out
}

// placesOf says where a fault may strike.
func (x *explorer) placesOf(s *state, f fault, at func(j int)) {
	w := s.w
	latest := w.latest()
	switch f {
	case crashProcess, rebootNode:
		for i, r := range w.reps {
			if !r.down {
				at(i)
			}
		}
	case fullPool:
		for i, r := range w.reps {
			if !r.full {
				at(i)
			}
		}
	case brokenDisk: // never the last: what it had is gone
		good := 0
		for i, r := range w.reps {
			if !r.failed && w.store.states[i] == volume.InSync {
				good++
			}
		}
		for i := range w.reps {
			if good == len(w.reps) {
				at(i)
			}
		}
	case breakConn:
		if latest == nil {
			return
		}
		for i := range w.reps {
			if n, _ := latest.m.Session(i); n > 0 && w.conns[latest.key(i, n)] != nil {
				at(i)
			}
		}
	case killHolder, silence:
		for i, h := range w.holders {
			if !h.dead {
				at(i)
			}
		}
	case cutOff:
		for i, m := range w.msgs {
			if m.a.Kind == Open && !m.executed {
				at(i)
			}
		}
	case swapBefore, swapAfter, swapLate:
		for i, c := range w.swaps {
			if !c.answered && c.readVersion == 0 {
				at(i)
			}
		}
	case takeOver:
		if latest != nil && s.left.holders > 0 {
			at(0)
		}
	case powerLoss:
		at(0)
	case storeBack:
		if latest == nil && s.backup != nil && len(w.swaps) == 0 && s.backup.epoch < w.store.epoch {
			at(0)
		}
	}
}

// happen lets one thing happen.
func (x *explorer) happen(s *state, h happening, c *chances) {
	w := s.w
	switch h.what {
	case messageMoves:
		w.stepMessage(w.msgs[h.i])
	case swapMoves:
		w.advanceSwap(w.swaps[h.i], storeFine)
	case clientAsks:
		s.left.ops--
		sh := x.set.shapes[h.j]
		w.submit(w.holders[h.i], sh.kind, sh.off, sh.n)
	case nextHolder:
		s.open(c)
	case timePasses:
		s.left.ticks--
		w.time += int64(h.i)
		for _, g := range w.holders {
			w.event(g, func() { g.m.Tick(g.m.now + int64(h.i)) }, "ticks pass")
		}
	case leaseEnds: // and with it those of all holders before: they need new proofs
		g := w.holders[h.i]
		w.time = max(w.time, g.m.serveAt)
		w.event(g, func() { g.m.Tick(g.m.now) }, "older leases end")
	case holderGrows:
		s.left.grows--
		g := w.holders[h.i]
		size := g.m.Size() + 1
		w.event(g, func() { g.m.Grow(size) }, "grow to %d", size)
	case holderCloses:
		s.left.closes--
		g := w.holders[h.i]
		w.event(g, g.m.Close, "close")
	case replicaReturns:
		w.reps[h.i].down = false
	case spaceReturns:
		w.reps[h.i].full = false
	case replicaReplaced:
		s.replace(h.i)
	case faultStrikes:
		s.left.faults--
		s.left.used[h.i] = true
		s.strike(fault(h.i), h.j, c)
	}
}

// settle delivers the answers that are ready.
func (x *explorer) settle(s *state) {
	w := s.w
	for again := !x.set.apart; again; {
		again = false
		if i := slices.IndexFunc(w.msgs, func(m *message) bool { return m.ready && !m.h.dead }); i >= 0 {
			w.stepMessage(w.msgs[i])
			again = true
		}
		if i := slices.IndexFunc(w.swaps, func(c *swapCall) bool { return c.answered }); i >= 0 {
			w.advanceSwap(w.swaps[i], storeFine)
			again = true
		}
	}
}

func (s *state) open(c *chances) {
	s.left.holders--
	c.other = len(s.w.holders) % len(s.w.reps) // each on the next node
	s.w.newHolder()
}

func (s *state) strike(f fault, at int, c *chances) {
	w := s.w
	switch f {
	case crashProcess:
		w.crash(at, false)
	case rebootNode:
		s.reboot(at)
	case breakConn:
		h := w.latest()
		n, _ := h.m.Session(at)
		w.breakConn(h, at, n)
	case killHolder:
		w.holders[at].dead = true
	case powerLoss:
		for i := range w.reps {
			s.reboot(i)
		}
		for _, h := range w.holders {
			h.dead = true
		}
	case swapBefore, swapAfter, swapLate:
		w.advanceSwap(w.swaps[at], map[fault]storeFault{swapBefore: storeBefore, swapAfter: storeAfter, swapLate: storeLate}[f])
	case fullPool:
		w.reps[at].full = true
	case brokenDisk:
		w.reps[at].failed = true
	case cutOff:
		m := w.msgs[at]
		m.h.cut |= bit(m.a.Leg)
		w.stepMessage(m)
	case takeOver:
		s.open(c)
	case silence:
		h := w.holders[at]
		w.event(h, func() { h.m.Tick(h.m.now + 20) }, "silence")
	case storeBack:
		version := w.store.version
		w.store = *copyOf(s.backup)
		w.store.version = version + 1
	}
}

// reboot takes a node's power. What is lost matters if the replica may be used
// next, be it by a swap that is still on its way.
func (s *state) reboot(at int) {
	s.w.crash(at, true)
	for _, c := range s.w.swaps {
		if !c.answered && len(c.wants.States) > 0 && c.wants.States[at] == volume.InSync {
			s.w.forgetful |= bit(at)
		}
	}
}

// tidy forgets what has no future, so that histories that differ only in it
// meet: what was answered, who is dead, what can't arrive any more.
func (s *state) tidy() {
	w := s.w
	for _, h := range w.holders {
		if h.stopped {
			h.dead = true
		}
		if h.dead {
			h.m, h.ops, h.grows = never, nil, nil
		}
		h.ops = slices.DeleteFunc(h.ops, func(o *opModel) bool { return o.over() })
	}
	w.msgs = slices.DeleteFunc(w.msgs, func(m *message) bool {
		if m.h.dead {
			m.h.m = never
		}
		return m.h.dead && !w.canStillAct(m)
	})
	w.swaps = slices.DeleteFunc(w.swaps, func(c *swapCall) bool {
		if c.readVersion > 0 {
			return c.readVersion != w.store.version
		}
		return c.h.dead && (c.answered || !w.store.holds(c))
	})
	slices.SortStableFunc(w.msgs, compareMessages)
	slices.SortStableFunc(w.swaps, func(a, b *swapCall) int {
		return cmp.Or(cmp.Compare(a.h.id, b.h.id), cmp.Compare(a.readVersion, b.readVersion))
	})
	s.tidyConns()
	s.tidyDropped()
}

// canStillAct says whether a message that nobody waits for can change a replica.
func (w *world) canStillAct(m *message) bool {
	r := w.reps[m.a.Leg]
	switch {
	case m.executed, m.lost, m.a.Kind == AskTurn:
		return false
	case m.a.Kind == Open:
		return m.h.epoch > r.epoch || m.h.epoch == r.epoch && m.a.Session > r.session
	case m.a.Op != nil && (m.a.Op.Kind == Read || m.a.Op.Kind == Probe || m.a.Op.Kind == Confirm):
		return false
	}
	return r.live && r.epoch == m.h.epoch && r.session == m.a.Session
}

func compareMessages(a, b *message) int {
	seq := func(m *message) uint64 {
		if m.a.Op == nil {
			return 0
		}
		return m.a.Op.seq
	}
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.h.id, b.h.id), cmp.Compare(a.a.Leg, b.a.Leg), cmp.Compare(a.a.Session, b.a.Session),
		cmp.Compare(a.a.Kind, b.a.Kind), cmp.Compare(seq(a), seq(b)), cmp.Compare(flag(a.lost), flag(b.lost)),
		cmp.Compare(flag(a.executed), flag(b.executed)), cmp.Compare(flag(a.ready), flag(b.ready)))
}

func (s *state) tidyConns() {
	w := s.w
	used := map[connKey]bool{}
	for _, m := range w.msgs {
		used[m.h.key(m.a.Leg, m.a.Session)] = true
		if m.a.Kind == Copy {
			used[m.h.key(m.a.Src, m.a.SrcSession)] = true
		}
	}
	alive := map[int]bool{}
	for _, h := range w.holders {
		alive[h.epoch] = alive[h.epoch] || !h.dead
	}
	for k, c := range w.conns {
		if !used[k] && (c.broken || !alive[k.epoch]) {
			delete(w.conns, k)
		}
	}
	for i, r := range w.reps {
		if r.live && !alive[r.epoch] && !used[connKey{r.epoch, i, r.session}] {
			r.live = false
		}
	}
}

func (s *state) tidyDropped() {
	known := map[int]bool{}
	for _, h := range s.w.holders {
		for _, o := range h.ops {
			known[o.id] = true
		}
	}
	for id := range s.w.dropped {
		if !known[id] {
			delete(s.w.dropped, id)
		}
	}
}

// marks notes the numbers that machines and replicas compare.
func (x *explorer) marks(s *state) {
	e := &x.enc
	e.marks = append(e.marks[:0], 0)
	for _, h := range s.w.holders {
		e.marks = append(e.marks, h.m.cycle.seq)
		for _, q := range h.m.asked {
			e.marks = append(e.marks, q.seq)
		}
	}
	for _, m := range s.w.msgs {
		e.marks = append(e.marks, m.a.Seq)
	}
	for _, r := range s.w.reps {
		e.marks = append(e.marks, r.rotation)
	}
	slices.Sort(e.marks)
	e.marks = slices.Compact(e.marks)
}

// hash is equal for states with the same future.
func (x *explorer) hash(s *state) uint64 {
	e := &x.enc
	e.buf, e.ids, e.store = e.buf[:0], append(e.ids[:0], 0), &s.w.store
	e.time = s.w.time
	clear(e.seen)
	e.seen[unsafe.Pointer(never)] = 1
	for _, r := range s.w.registers {
		e.ids = append(e.ids, r.ids...)
	}
	for _, r := range s.w.reps {
		e.ids = append(append(e.ids, r.volatile...), r.durable...)
	}
	for _, m := range s.w.msgs {
		e.ids = append(e.ids, m.vals...)
		if m.op != nil {
			e.ids = append(e.ids, m.op.id)
		}
	}
	for _, h := range s.w.holders {
		for _, o := range h.ops {
			e.ids = append(append(e.ids, o.id), o.vals...)
		}
	}
	x.marks(s)
	slices.Sort(e.ids)
	e.ids = slices.Compact(e.ids)
	b := &s.left
	e.buf = append(e.buf, byte(b.faults), byte(b.holders), byte(b.ops), byte(b.ticks), byte(b.grows), byte(b.closes), byte(b.replaces))
	if b.used[storeBack] {
		e.buf = append(e.buf, 1)
	}
	(*x.encodeWorld)(e, unsafe.Pointer(s.w))
	return digest(e.buf)
}
