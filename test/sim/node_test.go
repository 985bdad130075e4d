package sim

import (
	"slices"
	"strconv"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const blockBytes = 4096

// node is a machine with a replica on it. A block holds the number of the write
// that was last in it, or 0 for zeroes.
type node struct {
	c        *cluster
	id       int
	up       bool
	vol, dur []uint32 // what is read; what survives a power loss
	failed   bool     // durably
	full     bool
	slow     int64 // added to each request, in ms
	eio      int   // so many requests until the disk fails one; 0 means never
	seen     replica.Opening
	live     *conn // the open session's
	track    tracker
}

func newNode(c *cluster, id int) *node {
	return &node{c: c, id: id, up: true, vol: make([]uint32, c.blocks), dur: make([]uint32, c.blocks), track: newTracker()}
}

func (n *node) start() {
	if !n.up {
		n.up = true
		n.c.logf("node %d starts", n.id)
	}
}

// stop ends the replica's process; without power each unflushed block may be
// lost, by chance.
func (n *node) stop(power bool) {
	n.c.logf("node %d stops, power loss %v", n.id, power)
	n.up = false
	if power {
		lost := false
		for b := range n.vol {
			if n.vol[b] != n.dur[b] && n.c.rng.IntN(2) == 0 {
				n.vol[b], lost = n.dur[b], true
			}
		}
		copy(n.dur, n.vol)
		if lost {
			n.c.counts.reach("unflushed blocks lost")
			n.c.history.forgot(n.c, n.id)
		}
	}
	if n.live != nil {
		n.live.lose("the replica's process ended")
		n.live = nil
	}
}

// open is the replica's part of an opening.
func (n *node) open(h *holder, leg int, s volume.Session) (*conn, core.Result) {
	switch asked := (replica.Opening{Epoch: h.epoch, Session: s, Holder: h.name(), Nonce: strconv.Itoa(h.id)}); {
	case !n.up:
		return nil, core.Lost
	case n.failed:
		return nil, core.Broken
	case replica.Admit(n.seen, asked) != replica.Newer:
		n.c.counts.reach("fence refused")
		return nil, core.Fenced
	default:
		n.seen = asked
	}
	if old := n.live; old != nil {
		old.ended = true
	}
	n.live = &conn{h: h, leg: leg, session: s}
	n.track.age(0)
	return n.live, core.OK
}

// serve does one request of a session.
func (n *node) serve(cn *conn, k core.Kind, off, length int64, val uint32) (core.Result, []uint32) {
	switch {
	case !n.up:
		return core.Lost, nil
	case n.live != cn:
		n.c.counts.reach("request of an ended session refused")
		return core.Fenced, nil
	case n.failed:
		return core.Broken, nil
	}
	if cn.broken {
		n.c.counts.reach("bytes arrive after their connection broke")
	}
	blocks := n.vol[off/blockBytes : (off+length)/blockBytes]
	if k == core.Read {
		return core.OK, slices.Clone(blocks)
	}
	if k != core.Change && k != core.Flush { // the machine's own question
		return core.OK, nil
	}
	if k == core.Change {
		n.track.intend(off, length)
	}
	if n.eio > 0 {
		if n.eio--; n.eio == 0 && n.c.mayFail(n.id) {
			n.c.logf("node %d: the disk fails a %v", n.id, k)
			n.c.counts.fault("disk error")
			n.failed = true
			for b := range blocks { // a torn write
				if n.c.rng.IntN(2) == 0 {
					blocks[b] = val
				}
			}
			return core.Broken, nil
		}
	}
	if k == core.Flush {
		copy(n.dur, n.vol)
		return core.OK, nil
	}
	if n.full {
		n.c.counts.reach("no space")
		return core.NoSpace, nil
	}
	for b := range blocks {
		blocks[b] = val
	}
	return core.OK, nil
}

// mayFail says whether a disk may fail for good: another replica is InSync, and
// every other one sound.
func (c *cluster) mayFail(id int) bool {
	for i, n := range c.nodes {
		if i != id && (n.failed || c.store.states[i] != volume.InSync) {
			return false
		}
	}
	return !c.healed
}

// conn is one session's connection, from both ends.
type conn struct {
	h       *holder
	leg     int
	session volume.Session
	broken  bool // the mirror's end knows that it is over
	ended   bool // a newer session took over
	pending []*call
}

// call is one request on a connection.
type call struct {
	cn       *conn
	kind     core.Kind
	off, len int64
	val      uint32
	answered bool
	done     func(core.Result, []uint32)
}

// send sends a request and answers it exactly once.
func (cn *conn) send(x *call) {
	if cn.broken {
		cn.h.c.after(0, func() { x.done(core.Lost, nil) })
		return
	}
	cn.pending = append(cn.pending, x)
	cn.h.c.after(cn.h.c.delay(), func() { cn.arrive(x) })
}

// arrive: the request reaches the replica, unless the way is cut; then it waits
// in a buffer, and may arrive after the connection broke.
func (cn *conn) arrive(x *call) {
	c := cn.h.c
	n := c.nodes[cn.leg]
	if c.cut[cn.h.node][cn.leg] {
		if cn.broken && c.rng.IntN(4) == 0 {
			return // the buffer is gone
		}
		c.after(50, func() { cn.arrive(x) })
		return
	}
	if cn.broken && c.rng.IntN(2) == 0 {
		return
	}
	slow := n.slow
	if slow > 0 {
		slow = c.rng.Int64N(slow)
	}
	c.after(slow, func() {
		res, vals := n.serve(cn, x.kind, x.off, x.len, x.val)
		c.after(c.delay(), func() { cn.answer(x, res, vals) })
	})
}

func (cn *conn) answer(x *call, res core.Result, vals []uint32) {
	c := cn.h.c
	if x.answered {
		return
	}
	if c.cut[cn.leg][cn.h.node] {
		c.after(50, func() { cn.answer(x, res, vals) })
		return
	}
	x.answered = true
	cn.pending = slices.DeleteFunc(cn.pending, func(p *call) bool { return p == x })
	x.done(res, vals)
}

// lose breaks the connection: the mirror hears of it after a while.
func (cn *conn) lose(why string) {
	cn.h.c.after(cn.h.c.delay(), func() {
		if cn.broken {
			return
		}
		cn.drop()
		cn.h.step(func(m *core.Machine) { m.LegLost(cn.leg, cn.session, why) }, "leg %d session %d lost", cn.leg, cn.session)
	})
}

// drop ends the mirror's end: whatever is under way is answered.
func (cn *conn) drop() {
	cn.broken = true
	pending := cn.pending
	cn.pending = nil
	for _, x := range pending {
		x.answered = true
		cn.h.c.after(0, func() { x.done(core.Lost, nil) })
	}
}
