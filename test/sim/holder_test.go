package sim

import (
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// holder is one mirror on one node, with its client.
type holder struct {
	c             *cluster
	id, node      int
	epoch         volume.Epoch
	m             *core.Machine
	conns         []*conn
	names         []string // what replicas call each other, as it found them
	dead, stopped bool
	counts        bool // it had the store's word when it began to serve
	pausedUntil   int64
	rate          int64    // of its clock, in hundredths of the true one
	ran, ticked   int64    // how much time passed while it ran, and until when
	late          []func() // events that come while it is paused
	began         bool     // to serve, but no replica was there yet to tell what it serves
	swaps         []*swap
	open          int // requests without an answer
}

func (h *holder) name() volume.NodeID { return volume.NodeID(fmt.Sprintf("n%d", h.node)) }

func (c *cluster) newHolder() { c.newHolderOn(c.rng.IntN(len(c.nodes) + 1)) }

func (c *cluster) newHolderOn(node int) {
	h := &holder{c: c, id: len(c.holders), node: node, rate: 90 + c.rng.Int64N(21), ticked: c.now, conns: make([]*conn, len(c.nodes))}
	cfg := core.Config{Patience: patience, OpPatience: 4 * patience, Rejoin: c.rough.rejoin, Lease: lease, Reopen: 200, CopyBytes: 4 * blockBytes, RegionBytes: grain.RegionBytes, Settle: 300, Corrections: 1 + c.rough.depth/2}
	for i := range c.nodes {
		cfg.Legs = append(cfg.Legs, core.LegConfig{Local: i == h.node})
	}
	m, err := core.New(cfg)
	if err != nil {
		c.fail("stuck", "%v", err)
		return
	}
	h.m = m
	c.holders, c.current = append(c.holders, h), h
	c.counts.reach("opening")
	h.step(func(m *core.Machine) { m.Start() }, "start on node %d", h.node)
	c.after(tickEvery, h.tick)
	c.after(c.delay(), h.client)
}

// step gives the machine an event and does what it answers.
func (h *holder) step(event func(*core.Machine), what string, args ...any) {
	if h.dead {
		return
	}
	if h.c.now < h.pausedUntil { // the process is stopped for a while
		h.late = append(h.late, func() { h.step(event, what, args...) })
		return
	}
	h.m.Clock(h.c.now * h.rate / 100)
	event(h.m)
	actions := h.m.Take(nil)
	if h.c.tells() {
		h.c.logf("h%d %s -> %v", h.id, fmt.Sprintf(what, args...), h.m)
	}
	for _, a := range actions {
		h.do(a)
	}
	if h.began && !h.stopped {
		h.c.serves(h)
	}
	if err := h.m.CheckInvariants(); err != nil {
		h.c.fail("lost", "h%d: %v", h.id, err)
	}
}

func (h *holder) tick() {
	if h.dead || h.stopped {
		return
	}
	if h.c.now >= h.pausedUntil {
		late := h.late
		h.late = nil
		for _, f := range late {
			f()
		}
		h.ran, h.ticked = h.ran+min(h.c.now-h.ticked, 2*tickEvery), h.c.now
		h.step(func(m *core.Machine) { m.Tick(h.ran) }, "tick")
	}
	h.c.after(tickEvery, h.tick)
}

func (h *holder) do(a core.Action) {
	switch a.Kind {
	case core.Open:
		h.openLeg(a)
	case core.Send:
		h.send(a)
	case core.Reply:
		h.reply(a.Op.User.(*request), a.Result)
	case core.Drop:
		if cn := h.conns[a.Leg]; cn != nil && cn.session == a.Session {
			cn.drop()
		}
	case core.Swap:
		h.swap(*a.Change)
	case core.Copy:
		h.copyRange(a)
	case core.AskTurn:
		h.c.after(h.c.delay(), func() {
			h.step(func(m *core.Machine) { m.Turn(a.Leg, a.Session, int64(1+h.c.rng.IntN(4))*blockBytes) }, "turn of leg %d", a.Leg)
		})
	case core.ReadMap, core.Rotate, core.DropPrevious, core.DropCopied, core.Grow:
		h.control(a)
	case core.Resized:
		h.c.counts.reach("volume grown")
	case core.GrowDone:
		if a.Result != core.OK {
			h.c.counts.reach("growth refused")
		}
	case core.Serve:
		h.c.serves(h)
	case core.Stop:
		h.stopped = true
		h.c.logf("h%d stops: %v %s", h.id, a.Result, a.Reason)
		h.c.counts.reach("stopped: " + a.Result.String())
		for _, cn := range h.conns {
			if cn != nil {
				cn.drop()
			}
		}
	default:
		h.c.fail("stuck", "the simulator does not know action %d", a.Kind)
	}
}

// openLeg is a call to a node's agent: it may be lost on either way.
func (h *holder) openLeg(a core.Action) {
	c, done := h.c, false
	answer := func(err error, cn *conn) {
		if done {
			return
		}
		done = true
		res := mirror.OpenResult(err)
		if res == core.OK {
			h.conns[a.Leg] = cn
		}
		o := core.Opening{Result: res, Reason: res.String()}
		if res == core.OK {
			o.Incarnation = cn.replica.Incarnation()
			h.countRejoin(a.Leg, o)
		}
		h.step(func(m *core.Machine) { m.Opened(a.Leg, a.Session, o) }, "opened leg %d session %d: %v", a.Leg, a.Session, res)
	}
	c.after(rpcTimeout, func() { answer(errUnreachable, nil) })
	c.after(c.delay(), func() {
		if c.cut[h.node][a.Leg] {
			return
		}
		n := c.nodes[a.Leg]
		cn, err := n.open(h, a.Leg, a.Session, a.Size)
		c.after(c.delay(), func() {
			switch {
			case c.cut[a.Leg][h.node], !n.up:
			case cn != nil && done: // nobody waits for it any more
				cn.broken = true
			default:
				answer(err, cn)
			}
		})
	})
}

// countRejoin notes what became of an InSync leg that was lost and came back.
func (h *holder) countRejoin(leg int, o core.Opening) {
	if was, waited := h.m.Rejoining(leg); waited {
		h.c.counts.reach(map[bool]string{true: "leg rejoined", false: "incarnation refused"}[was == o.Incarnation])
	}
}

func (h *holder) send(a core.Action) {
	x := &call{}
	q, _ := a.Op.User.(*request)
	switch {
	case q != nil:
		x.io = q.io
		q.sends++
		if q.sends > 1 && a.Op.Kind == core.Read {
			h.c.counts.reach("read sent again")
		}
	case a.Op.Kind == core.Flush:
		x.io = block.IO{Op: block.OpFlush}
	case a.Op.Kind == core.Confirm:
		x.io = block.IO{Op: block.OpRead}
	default: // the machine's own question
		x.io = block.IO{Op: block.OpRead, Len: blockBytes}
	}
	if x.io.Op == block.OpRead {
		x.io.Data = make([]byte, x.io.Len)
	}
	x.done = func(err error) {
		if q != nil && err == nil && x.io.Op == block.OpRead && !q.replied {
			q.got = x.io.Data
		}
		res := mirror.LegResult(err)
		h.step(func(m *core.Machine) { m.Answer(a.Leg, a.Session, a.Op, res) }, "leg %d answers %v: %v", a.Leg, a.Op.Kind, res)
	}
	cn := h.conns[a.Leg]
	if cn == nil || cn.session != a.Session {
		h.c.after(0, func() { x.done(errUnreachable) })
		return
	}
	cn.send(x)
}

// request is one request of a client: of some of the blocks that are used.
type request struct {
	h        *holder
	op       core.Op
	io       block.IO
	first, n int    // blocks, of those that are used
	val      uint32 // what a change writes; 0 for zeroes
	got      []byte // what a read brought
	sends    int
	replied  bool
	began    int64
	promised []int64 // of a flush: the changes that it makes durable
}

// used is the blocks that clients use, by their places on the volume; each run of
// numbers is one place of it. The last are there once the volume has grown.
var used = []int64{0, 1, 2, 3, 4, 5, 70, 71, 72, 73, 255, grownFrom, grownFrom + 1}

const (
	grownFrom = 256 // blocks at first
	growth    = 8
)

// pick chooses blocks that lie in a row.
func (c *cluster) pick(size int64) (first, n int) {
	for {
		first = c.rng.IntN(len(used))
		n = 1 + c.rng.IntN(3)
		if last := first + n - 1; last < len(used) && used[last] == used[first]+int64(n-1) && (used[last]+1)*blockBytes <= size {
			return first, n
		}
	}
}

// client keeps requests coming.
func (h *holder) client() {
	c := h.c
	if h.dead || h.stopped {
		return
	}
	c.after(c.pause(20+4*c.rough.delay), h.client)
	if c.healed || h.m.Phase() >= core.Draining || h.open >= c.rough.depth || c.history.requests > 400 {
		return
	}
	q := &request{h: h, began: c.tick()}
	q.op.User = q
	q.first, q.n = c.pick(max(h.m.Size(), grownFrom*blockBytes))
	q.io.Off, q.io.Len = used[q.first]*blockBytes, int64(q.n)*blockBytes
	q.op.Kind = core.Change
	switch c.rng.IntN(20) {
	case 0, 1:
		q.op.Kind, q.io = core.Flush, block.IO{Op: block.OpFlush}
		c.counts.Flushes++
		q.promised = c.history.promise()
	case 2, 3, 4, 5, 6, 7:
		q.op.Kind, q.io.Op = core.Read, block.OpRead
		c.counts.Reads++
	case 8:
		q.io.Op = block.OpTrim
		c.counts.Trims++
	case 9:
		q.io.Op, q.io.NoHole, q.io.FUA = block.OpWriteZeroes, c.rng.IntN(2) == 0, c.rng.IntN(2) == 0
		c.counts.Trims++
	default:
		c.lastVal++
		q.val = c.lastVal
		q.io.Op, q.io.Data, q.io.FUA = block.OpWrite, bytesOf(q.val, q.io.Len), c.rng.IntN(12) == 0
		c.counts.Writes++
	}
	q.op.Off, q.op.Len = q.io.Off, q.io.Len
	h.open++
	c.history.begin(q)
	h.step(func(m *core.Machine) { m.Submit(&q.op) }, "%v %d+%d = %d", q.io.Op, q.op.Off, q.op.Len, q.val)
}

// tick gives each request a time of its own, in the order of events.
func (c *cluster) tick() int64 {
	c.order++
	return c.order
}

func (h *holder) reply(q *request, res core.Result) {
	if q.replied {
		h.c.fail("lost", "a request was replied to twice")
		return
	}
	q.replied = true
	h.open--
	h.c.logf("h%d replies to %v %d+%d: %v %v", h.id, q.io.Op, q.op.Off, q.op.Len, res, q.contents())
	if res == core.OK {
		h.c.history.end(h.c, q)
	}
}

// contents is what a read brought, by block.
func (q *request) contents() (out []content) {
	for off := 0; off < len(q.got); off += blockBytes {
		out = append(out, parse(q.got[off:off+blockBytes]))
	}
	return out
}

// removeSwap forgets a swap.
func (h *holder) removeSwap(s *swap) {
	h.swaps = slices.DeleteFunc(h.swaps, func(x *swap) bool { return x == s })
}
