package sim

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// history is what clients asked and were told, block by block.
type history struct {
	requests int
	blocks   []blockHistory
	// forgetful: an InSync replica lost unflushed writes since the last holder
	// began to serve. rebooted: the nodes that lost their power since then.
	forgetful bool
	rebooted  map[int]bool
}

// blockHistory is one block's, since its value was last known for certain.
type blockHistory struct {
	by  *holder    // who found that value; nil at first
	ops []*blockOp // the first is the value that was known
	// safe is the last change known to survive a power loss; while it is nil, any
	// of the older values may come back.
	safe  *blockOp
	older []content
}

// blockOp is one request's part in one block; end is never until it was
// acknowledged.
type blockOp struct {
	write      bool
	val        content
	begin, end int64
	client     int
}

const never = math.MaxInt64

func (y *history) init(blocks int) {
	y.rebooted = map[int]bool{}
	for range blocks {
		empty := &blockOp{write: true}
		y.blocks = append(y.blocks, blockHistory{ops: []*blockOp{empty}, safe: empty})
	}
}

func (y *history) begin(q *request) {
	y.requests++
	if q.op.Kind == core.Change {
		for b := q.first; b < q.first+q.n; b++ {
			y.blocks[b].ops = append(y.blocks[b].ops, &blockOp{write: true, val: uniform(q.val), begin: q.began, end: never, client: q.h.id})
		}
	}
}

// promise notes, for a flush that begins, the last acknowledged change of each
// block, by when it began.
func (y *history) promise() []int64 {
	out := make([]int64, len(y.blocks))
	for b := range y.blocks {
		latest := int64(-1)
		for _, o := range y.blocks[b].ops {
			if o.write && o.end != never && o.end > latest {
				latest, out[b] = o.end, o.begin
			}
		}
	}
	return out
}

// end is an acknowledgement.
func (y *history) end(c *cluster, q *request) {
	now := c.tick()
	switch q.op.Kind {
	case core.Change:
		for b := q.first; b < q.first+q.n; b++ {
			for _, o := range y.blocks[b].ops {
				if o.write && o.begin == q.began {
					o.end = now
					if q.io.FUA && q.h.counts {
						y.blocks[b].survives(o)
					}
				}
			}
		}
	case core.Read:
		for i, v := range q.contents() {
			b := q.first + i
			if y.tooLate(q, b) {
				continue
			}
			y.blocks[b].ops = append(y.blocks[b].ops, &blockOp{val: v, begin: q.began, end: now, client: q.h.id})
		}
	case core.Flush:
		if !q.h.counts {
			return // overtaken before it served, it promises what it found, whatever that was
		}
		for b, begin := range q.promised {
			for _, o := range y.blocks[b].ops {
				if o.write && o.begin == begin {
					y.blocks[b].survives(o)
				}
			}
		}
	}
}

// tooLate: what a holder reads that was overtaken before it served, or before a
// power loss, is what the replicas then had, which is not known any more.
func (y *history) tooLate(q *request, b int) bool {
	g := &y.blocks[b]
	return y.forgetful && !q.h.counts || g.by != nil && g.by != q.h && q.began < g.ops[0].begin
}

// survives: an acknowledged change is promised to be durable.
func (g *blockHistory) survives(o *blockOp) {
	if g.safe == nil || g.safe.end < o.end {
		g.safe = o
	}
}

// forgot: a replica lost unflushed writes. It matters if it may be used next.
func (y *history) forgot(c *cluster, id int) {
	matters := c.store.states[id] == volume.InSync
	underWay := slices.Clone(c.late)
	for _, h := range c.holders {
		underWay = append(underWay, h.swaps...)
	}
	for _, s := range underWay {
		matters = matters || len(s.w.States) > 0 && s.w.States[id] == volume.InSync
	}
	for _, h := range c.holders {
		if !h.dead && !h.stopped {
			st, _ := h.m.LegState(id)
			matters = matters || st == volume.InSync
		}
	}
	y.forgetful = y.forgetful || matters
}

// serves: a holder begins to serve. If all of its replicas lost their power, what
// they have is the truth from now on, as long as it is no older than what was
// promised to be durable.
func (c *cluster) serves(h *holder) {
	c.counts.reach("serving")
	y := &c.history
	if c.store.holder != h {
		return
	}
	h.counts = true
	if h.began = false; !y.forgetful {
		clear(y.rebooted)
		return
	}
	legs := c.liveLegs(h)
	if h.began = len(legs) == 0; h.began {
		return // they died meanwhile: it will find out, or they come back
	}
	y.forgetful = false
	defer clear(y.rebooted)
	if kept := slices.ContainsFunc(legs, func(n *node) bool { return !y.rebooted[n.id] }); kept {
		c.counts.reach("serving from those that kept their power")
		return
	}
	c.counts.reach("serving after a power loss")
	for b := range y.blocks {
		g := &y.blocks[b]
		for _, n := range legs {
			if !g.mayHold(n.block(b)) {
				c.fail("lost", "block %d: node %d has %v after a power loss, which it may not: flushed %v, older %v, %s", b, n.id, n.block(b), g.safe, g.older, g)
			}
		}
		c.checkBlock(b)
		now := c.tick()
		next := blockHistory{by: h, older: g.candidates(), ops: []*blockOp{{write: true, val: legs[0].block(b), begin: now, end: now}}}
		for i, n := range c.nodes { // not yet corrected: any of these may become the truth
			if val := n.block(b); c.store.states[i] == volume.InSync && val != legs[0].block(b) && g.mayHold(val) {
				next.ops = append(next.ops, &blockOp{write: true, val: val, begin: now, end: never})
			}
		}
		for _, o := range g.ops { // asked of it before it served, or of who is about to overtake it
			if o.end == never && o.client >= h.id {
				next.ops = append(next.ops, o)
			}
		}
		*g = next
	}
}

// liveLegs are the replicas that the holder reads from.
func (c *cluster) liveLegs(h *holder) (out []*node) {
	for i, n := range c.nodes {
		st, _ := h.m.LegState(i)
		if _, up := h.m.Session(i); up && st == volume.InSync && n.live != nil && n.live == h.conns[i] {
			out = append(out, n)
		}
	}
	return out
}

// mayHold says whether the block may have this content after a power loss, which
// may have torn it.
func (g *blockHistory) mayHold(c content) bool {
	candidates := g.candidates()
	for i, val := range c {
		if !slices.ContainsFunc(candidates, func(k content) bool { return k[i] == val }) {
			return false
		}
	}
	return true
}

// candidates are the contents that may be on a disk: of what is no older than what
// was flushed.
func (g *blockHistory) candidates() []content {
	var out []content
	if g.safe == nil {
		out = slices.Clone(g.older)
	}
	for _, o := range g.ops {
		if o.write && (g.safe == nil || o == g.safe || o.end >= g.safe.begin) {
			out = append(out, o.val)
		}
	}
	slices.SortFunc(out, func(a, b content) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(out)
}

// check checks every block as a register.
func (y *history) check(c *cluster) {
	for b := range y.blocks {
		if c.failure == "" {
			c.checkBlock(b)
		}
	}
}

type registerInput struct {
	write bool
	val   content
}

// checkBlock runs porcupine.
func (c *cluster) checkBlock(b int) {
	g := &c.history.blocks[b]
	model := porcupine.Model{
		Init: func() any { return content{} },
		Step: func(state, in, out any) (bool, any) {
			if q := in.(registerInput); q.write {
				return true, q.val
			}
			return out.(content) == state.(content), state
		},
		Equal: func(a, b any) bool { return a.(content) == b.(content) },
	}
	seen := map[content]bool{}
	for _, o := range g.ops {
		seen[o.val] = seen[o.val] || !o.write
	}
	var ops []porcupine.Operation
	for i, o := range g.ops {
		if o.end == never && !seen[o.val] { // it may have come after all others, so it forbids nothing
			continue
		}
		ops = append(ops, porcupine.Operation{ClientId: i, Input: registerInput{o.write, o.val}, Call: o.begin, Output: o.val, Return: o.end})
	}
	if res := porcupine.CheckOperationsTimeout(model, ops, 20*time.Second); res != porcupine.Ok {
		c.fail("lost", "block %d is no linearizable register (%s):%s", b, res, g)
	}
}

func (g *blockHistory) String() string {
	text := ""
	for _, o := range g.ops {
		text += fmt.Sprintf("\n    write=%v %v from %d to %d by h%d", o.write, o.val, o.begin, o.end, o.client)
	}
	return text
}
