package sim

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var errUnreachable = fmt.Errorf("the other end can't be reached: %w", volume.ErrUnavailable)

func openResult(err error) core.Result { return mirror.OpenResult(err) }

// conn is one session's connection, from both ends.
type conn struct {
	h       *holder
	leg     int
	session volume.Session
	replica *replica.Session
	process int  // of the node
	broken  bool // the mirror's end knows that it is over
	pending []*call
}

// call is one request on a connection. Each has a buffer of its own, for it may be
// carried out after it was given up.
type call struct {
	cn       *conn
	io       block.IO
	answered bool
	done     func(error)
}

// send sends a request and answers it exactly once.
func (cn *conn) send(x *call) {
	x.cn = cn
	if cn.broken {
		cn.h.c.after(0, func() { x.done(errUnreachable) })
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
		served, err := cn.serve(x)
		if served {
			c.after(c.delay(), func() { cn.answer(x, err) })
		}
	})
}

// serve has the replica do a request; false if nobody is there to answer.
func (cn *conn) serve(x *call) (answered bool, err error) {
	c := cn.h.c
	n := c.nodes[cn.leg]
	if !n.up || n.process != cn.process {
		return false, nil
	}
	if cn.broken {
		c.counts.reach("bytes arrive after their connection broke")
	}
	x.io.Done = func(_ *block.IO, e error) { err = e }
	cn.replica.Submit(&x.io)
	switch mirror.LegResult(err) {
	case core.Fenced:
		c.counts.reach("request of an ended session refused")
	case core.NoSpace:
		c.counts.reach("no space")
	}
	n.look()
	return n.up, err
}

func (cn *conn) answer(x *call, err error) {
	c := cn.h.c
	if x.answered {
		return
	}
	if c.cut[cn.leg][cn.h.node] {
		c.after(50, func() { cn.answer(x, err) })
		return
	}
	x.answered = true
	cn.pending = slices.DeleteFunc(cn.pending, func(p *call) bool { return p == x })
	x.done(err)
}

// hear: the replica ended the session, and closes its end.
func (cn *conn) hear(why string) {
	c := cn.h.c
	if c.cut[cn.leg][cn.h.node] {
		c.after(50, func() { cn.hear(why) })
		return
	}
	cn.lose(why)
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

// drop ends the mirror's end: whatever is under way is answered. The replica may
// hear of it, and ends the session.
func (cn *conn) drop() {
	c := cn.h.c
	cn.broken = true
	pending := cn.pending
	cn.pending = nil
	for _, x := range pending {
		x.answered = true
		c.after(0, func() { x.done(errUnreachable) })
	}
	if cn.replica == nil || c.rng.IntN(2) == 0 {
		return
	}
	n := c.nodes[cn.leg]
	c.after(c.pause(200), func() {
		if n.up && n.process == cn.process && !c.cut[cn.h.node][cn.leg] {
			_ = cn.replica.Close() // always nil
			n.look()
		}
	})
}

// ask is a call to a node's agent under a session: it may be lost on either way,
// or be carried out late.
func (h *holder) ask(leg int, s volume.Session, do func(*replica.Session) error, answer func(error)) {
	c, done := h.c, false
	once := func(err error) {
		if !done {
			done = true
			answer(err)
		}
	}
	c.after(rpcTimeout, func() { once(errUnreachable) })
	c.after(c.delay(), func() {
		n := c.nodes[leg]
		if c.cut[h.node][leg] || !n.up {
			return
		}
		ses, err := n.server.Session(volumeUID, h.epoch, s)
		if err == nil {
			err = do(ses)
		} else {
			c.counts.reach("control of an ended session refused")
		}
		if n.look(); !n.up {
			return
		}
		c.after(c.delay(), func() {
			if !c.cut[leg][h.node] {
				once(err)
			}
		})
	})
}

// control does one of the machine's actions that ask a replica for more than I/O.
func (h *holder) control(a core.Action) {
	ctx, k := context.Background(), h.c.counts
	var set *bitmap.Set
	do := func(s *replica.Session) (err error) {
		switch a.Kind {
		case core.ReadMap:
			set, err = s.Regions(ctx, mapKinds[a.Map], h.nameOf(a.About))
			k.reach("map read: " + a.Map.String())
		case core.Rotate:
			err = s.Rotate(ctx, a.Seq)
		case core.DropPrevious:
			var away []volume.Absent
			for _, o := range a.Away {
				away = append(away, volume.Absent{Name: h.nameOf(o.Leg), Progress: o.Progress})
				k.reach("intent bits become what others missed")
			}
			if err = s.DropPrevious(ctx, a.Seq, away); err == nil {
				k.reach("intent bits cleared")
			}
		case core.DropCopied:
			if err = s.DropCopied(ctx, a.Seq, a.Progress); err == nil {
				k.reach("progress of a resync noted")
				h.c.nodes[a.Leg].wasNoted(a.Progress)
			}
		case core.Grow:
			if err = s.Grow(ctx, a.Size); err == nil {
				k.reach("replica grown")
			}
		}
		return err
	}
	h.ask(a.Leg, a.Session, do, func(err error) {
		res := mirror.LegResult(err)
		h.step(func(m *core.Machine) {
			switch a.Kind {
			case core.ReadMap:
				m.MapRead(a, res, set)
			case core.Rotate:
				m.Rotated(a, res)
			case core.Grow:
				m.Grown(a, res, fmt.Sprint(err))
			default:
				m.Dropped(a, res)
			}
		}, "control %d of leg %d: %v", a.Kind, a.Leg, res)
	})
}

var mapKinds = map[core.MapKind]volume.MapKind{
	core.MapIntent: volume.MapIntent, core.MapMissed: volume.MapMissed, core.MapAllocated: volume.MapAllocated,
}

// nameOf is what replicas call the leg's, as this holder found it.
func (h *holder) nameOf(leg int) string {
	if leg < 0 {
		return ""
	}
	return h.names[leg]
}
