package sim

import (
	"container/heap"
	"fmt"
	"hash"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Times are virtual, in milliseconds.
const (
	tickEvery  = 100
	patience   = 2000
	lease      = 1000
	rpcTimeout = 1500
	activeFor  = 30_000  // faults and clients
	healFor    = 400_000 // then everything is repaired, and must come to rest
)

// cluster is everything there is. It has one goroutine and knows only its
// generator.
type cluster struct {
	rng   *rand.Rand
	now   int64
	queue events
	order int64

	nodes   []*node
	store   store
	holders []*holder
	late    []*swap // without an answer, and still on their way
	current *holder // the newest
	history history
	lastVal uint32
	healed  bool
	flaky   bool // the store loses many swaps and answers
	rough   roughness

	counts   *counts
	cleanups []func() // at the end, so that nothing of it stays

	failure string
	kind    string // of the failure: lost, diverged or stuck
	tell    func(string)
	digest  hash.Hash64 // of all that is told; nil means of no interest
	// cut[i][j]: nothing that node i sends reaches node j. The last index is the
	// node without a replica.
	cut [][]bool
	// storeCut: nodes that can't reach the store.
	storeCut []bool
}

// roughness is how likely things go wrong, drawn once for each seed.
type roughness struct {
	faultEvery int64 // mean, in ms
	delay      int64 // most, in ms
	depth      int   // requests at once
	power      bool
	rejoin     int64 // how long a lost leg is waited for, in ms
}

type event struct {
	at, order int64
	do        func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (c *cluster) after(delay int64, do func()) {
	c.order++
	heap.Push(&c.queue, event{c.now + delay, c.order, do})
}

func (c *cluster) logf(format string, args ...any) {
	if !c.tells() {
		return
	}
	line := fmt.Sprintf("%7d ", c.now) + fmt.Sprintf(format, args...) + "\n"
	if c.digest != nil {
		_, _ = c.digest.Write([]byte(line)) // a hash does not fail
	}
	if c.tell != nil {
		c.tell(line)
	}
}

// tells says whether anybody wants to know.
func (c *cluster) tells() bool { return c.digest != nil || c.tell != nil }

func (c *cluster) fail(kind, format string, args ...any) {
	if c.failure == "" {
		c.failure, c.kind = fmt.Sprintf(format, args...), kind
		c.logf("FAILURE: %s", c.failure)
	}
}

func newCluster(seed uint64, k *counts, tell func(string)) *cluster {
	c := &cluster{rng: rand.New(rand.NewPCG(seed, 0x686f6c64)), counts: k, tell: tell}
	replicas := 2 + c.rng.IntN(2)
	if c.rng.IntN(16) == 0 {
		replicas = 5
	}
	c.rough = roughness{
		faultEvery: []int64{400, 1000, 3000, 8000}[c.rng.IntN(4)], delay: []int64{2, 10, 60}[c.rng.IntN(3)],
		depth: 1 + c.rng.IntN(6), power: c.rng.IntN(2) == 0, rejoin: []int64{0, 500, 1500, 6000}[c.rng.IntN(4)],
	}
	c.store.size, c.store.clean = grownFrom*blockBytes, true
	for i := range replicas {
		c.nodes = append(c.nodes, newNode(c, i))
		c.store.states = append(c.store.states, volume.InSync)
		c.store.changes, c.store.ids = append(c.store.changes, 0), append(c.store.ids, "")
		c.store.newID(i)
		c.store.kept = append(c.store.kept, "")
	}
	for range replicas + 1 {
		c.cut = append(c.cut, make([]bool, replicas+1))
	}
	c.storeCut = make([]bool, replicas+1)
	c.history.init(len(used))
	return c
}

// run lives one history through.
func (c *cluster) run() {
	defer func() {
		for _, f := range c.cleanups {
			f()
		}
	}()
	c.newHolder()
	c.after(c.pause(c.rough.faultEvery), c.randomFault)
	c.after(0, c.supervise)
	c.until(activeFor, func() bool { return false })
	c.heal()
	c.until(activeFor+healFor, c.atRest)
	c.judge()
}

// until lets time pass up to a moment, or until done.
func (c *cluster) until(end int64, done func() bool) {
	for len(c.queue) > 0 && c.failure == "" && c.queue[0].at <= end && !done() {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
}

func (c *cluster) pause(mean int64) int64 { return 1 + c.rng.Int64N(2*mean) }
func (c *cluster) delay() int64           { return c.rng.Int64N(c.rough.delay + 1) }

// supervise stands for whoever stages the volume: there is always somebody who
// wants to use it.
func (c *cluster) supervise() {
	if h := c.current; h.dead || h.stopped {
		c.newHolder()
		if h = c.current; !c.healed && c.rng.IntN(8) == 0 { // while it opens
			c.after(c.rng.Int64N(5*c.rough.delay+1), func() { c.pauseWriter(h, 6000) })
		}
	}
	for _, n := range c.nodes {
		if n.missing && n.up {
			n.make(c.store.size)
		}
	}
	c.after(c.pause(500), c.supervise)
}

// heal repairs everything.
func (c *cluster) heal() {
	c.healed, c.flaky = true, false
	c.logf("--- healed")
	for i := range c.cut {
		clear(c.cut[i])
		c.storeCut[i] = false
	}
	for _, n := range c.nodes {
		n.slow, n.disk.full, n.disk.failIn, n.disk.crashIn = 0, false, 0, 0
		n.start()
	}
	for _, h := range c.holders {
		h.pausedUntil = 0
	}
}

// atRest: one holder serves, nothing is under way, not even the news that a
// session is over, and every replica whose disk is sound is InSync.
func (c *cluster) atRest() bool {
	h := c.current
	if h.dead || h.stopped || h.m.Phase() != core.Serving || h.m.Dirty() > 0 || h.open > 0 || len(h.swaps) > 0 {
		return false
	}
	for i, n := range c.nodes {
		st, _ := h.m.LegState(i)
		_, up := h.m.Session(i) // one that is waited for is InSync, too
		if !n.failed && (!up || st != volume.InSync || n.live == nil || n.live.h != h) {
			return false
		}
	}
	return true
}

// judge says what is wrong in the end.
func (c *cluster) judge() {
	if c.failure != "" {
		return
	}
	if !slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.failed && c.store.states[n.id] == volume.InSync }) {
		return // the last sound replica was not InSync
	}
	if !c.atRest() {
		c.fail("stuck", "not at rest %d s after everything was repaired: %v, %d requests open, store %v", healFor/1000, c.current.m, c.current.open, c.store.states)
		return
	}
	first := -1
	for i, n := range c.nodes {
		switch {
		case n.failed:
		case first < 0:
			first = i
		default:
			if b := c.differs(n, c.nodes[first]); b >= 0 {
				c.fail("diverged", "replicas %d and %d differ in block %d of a quiet volume: %v %v", first, i, b, c.nodes[first].cells()[b], n.cells()[b])
				return
			}
		}
	}
	c.history.check(c)
}

// differs is the first block of the volume in which two replicas differ, or -1.
func (c *cluster) differs(a, b *node) int {
	x, y := a.cells(), b.cells()
	for i := range int(c.store.size / blockBytes) {
		if i >= len(x) || i >= len(y) || x[i].content != y[i].content {
			return i
		}
	}
	return -1
}
