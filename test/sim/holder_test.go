package sim

import (
	"fmt"
	"slices"

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
	dead, stopped bool
	counts        bool // it had the store's word when it began to serve
	pausedUntil   int64
	late          []func() // events that come while it is paused
	swaps         []*swap
	open          int // requests without an answer
	bare          map[int]int64
}

func (h *holder) name() volume.NodeID { return volume.NodeID(fmt.Sprintf("n%d", h.node)) }

func (c *cluster) newHolder() {
	h := &holder{c: c, id: len(c.holders), node: c.rng.IntN(len(c.nodes) + 1), conns: make([]*conn, len(c.nodes)), bare: map[int]int64{}}
	cfg := core.Config{Patience: patience, OpPatience: 4 * patience, Reopen: 200, CopyBytes: 2 * blockBytes, RegionBytes: regionBlocks * blockBytes, Settle: 300}
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
	event(h.m)
	actions := h.m.Take(nil)
	h.c.logf("h%d %s -> %v", h.id, fmt.Sprintf(what, args...), h.m)
	for _, a := range actions {
		h.do(a)
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
		h.step(func(m *core.Machine) { m.Tick(h.c.now) }, "tick")
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
			h.step(func(m *core.Machine) { m.Turn(a.Leg, a.Session, int64(1+h.c.rng.IntN(2))*blockBytes) }, "turn of leg %d", a.Leg)
		})
	case core.ReadMap, core.Rotate, core.DropPrevious:
		h.control(a)
	case core.Grow:
		h.step(func(m *core.Machine) { m.Grown(a, core.OK, "") }, "grown")
	case core.Resized, core.GrowDone:
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
	answer := func(res core.Result, cn *conn) {
		if done {
			return
		}
		done = true
		if res == core.OK {
			h.conns[a.Leg] = cn
		}
		h.step(func(m *core.Machine) { m.Opened(a.Leg, a.Session, res, res.String()) }, "opened leg %d session %d: %v", a.Leg, a.Session, res)
	}
	c.after(rpcTimeout, func() { answer(core.Lost, nil) })
	c.after(c.delay(), func() {
		if c.cut[h.node][a.Leg] {
			return
		}
		cn, res := c.nodes[a.Leg].open(h, a.Leg, a.Session)
		c.after(c.delay(), func() {
			switch {
			case c.cut[a.Leg][h.node]:
			case cn != nil && done: // nobody waits for it any more
				cn.broken = true
			default:
				answer(res, cn)
			}
		})
	})
}

func (h *holder) send(a core.Action) {
	x := &call{kind: a.Op.Kind, off: a.Op.Off, len: a.Op.Len}
	q, _ := a.Op.User.(*request)
	if q != nil {
		x.val = q.val
		q.sends++
		if q.sends > 1 && a.Op.Kind == core.Read {
			h.c.counts.reach("read sent again")
		}
	}
	if a.Op.Kind != core.Change && a.Op.Kind != core.Read {
		x.off, x.len = 0, 0
	}
	x.done = func(res core.Result, vals []uint32) {
		if q != nil && vals != nil && !q.replied {
			q.vals = vals
		}
		h.step(func(m *core.Machine) { m.Answer(a.Leg, a.Session, a.Op, res) }, "leg %d answers %v: %v", a.Leg, a.Op.Kind, res)
	}
	cn := h.conns[a.Leg]
	if cn == nil || cn.session != a.Session {
		h.c.after(0, func() { x.done(core.Lost, nil) })
		return
	}
	x.cn = cn
	cn.send(x)
}

// copyRange reads from one leg, then writes block by block to the other.
func (h *holder) copyRange(a core.Action) {
	end := func(res core.Result, source bool) {
		if res != core.OK {
			h.c.counts.reach("copy failed")
		}
		h.step(func(m *core.Machine) { m.Copied(a.Leg, a.Session, a.Op, res, source) }, "copied %d+%d to leg %d: %v", a.Op.Off, a.Op.Len, a.Leg, res)
	}
	src, dst := h.conns[a.Src], h.conns[a.Leg]
	if src == nil || src.session != a.SrcSession {
		h.c.after(0, func() { end(core.Lost, true) })
		return
	}
	if dst == nil || dst.session != a.Session {
		h.c.after(0, func() { end(core.Lost, false) })
		return
	}
	h.c.counts.reach("copy")
	src.send(&call{cn: src, kind: core.Read, off: a.Op.Off, len: a.Op.Len, done: func(res core.Result, vals []uint32) {
		if res != core.OK {
			end(res, true)
			return
		}
		left, worst := len(vals), core.OK
		for b, v := range vals {
			dst.send(&call{cn: dst, kind: core.Change, off: a.Op.Off + int64(b)*blockBytes, len: blockBytes, val: v, done: func(res core.Result, _ []uint32) {
				if res != core.OK {
					worst = res
				}
				if left--; left == 0 {
					end(worst, false)
				}
			}})
		}
	}})
}

// request is one request of a client.
type request struct {
	h        *holder
	op       core.Op
	val      uint32 // what a change writes; 0 is a trim
	vals     []uint32
	sends    int
	replied  bool
	began    int64
	promised []int64 // of a flush: the changes that it makes durable
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
	off := c.rng.IntN(c.blocks)
	q.op.Off, q.op.Len = int64(off)*blockBytes, int64(1+c.rng.IntN(min(3, c.blocks-off)))*blockBytes
	switch c.rng.IntN(10) {
	case 0:
		q.op.Kind, q.op.Off, q.op.Len = core.Flush, 0, 0
		c.counts.Flushes++
		q.promised = c.history.promise(c.blocks)
	case 1, 2, 3:
		q.op.Kind = core.Read
		c.counts.Reads++
	case 4:
		q.op.Kind = core.Change // a trim: zeroes
		c.counts.Trims++
	default:
		q.op.Kind = core.Change
		c.lastVal++
		q.val = c.lastVal
		c.counts.Writes++
	}
	h.open++
	c.history.begin(q)
	h.step(func(m *core.Machine) { m.Submit(&q.op) }, "%v %d+%d = %d", q.op.Kind, q.op.Off, q.op.Len, q.val)
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
	h.c.logf("h%d replies to %v %d+%d: %v %v", h.id, q.op.Kind, q.op.Off, q.op.Len, res, q.vals)
	if res == core.OK {
		h.c.history.end(h.c, q)
	}
}

// removeSwap forgets a swap.
func (h *holder) removeSwap(s *swap) {
	h.swaps = slices.DeleteFunc(h.swaps, func(x *swap) bool { return x == s })
}
