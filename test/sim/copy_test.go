package sim

import (
	"bytes"
	"context"
	"iter"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/replica"
)

// sides lets the production code that compares and copies wait for the simulated
// network: it runs in a coroutine, which gives way whenever it waits.
type sides struct {
	h        *holder
	a        core.Action
	src, dst *conn
	wait     func() bool // false when the simulation is over
	resume   func()
}

// copyRange does one copy.
func (h *holder) copyRange(a core.Action) {
	end := func(res core.Result, source bool) {
		if res == core.OK {
			h.c.nodes[a.Leg].wasCopied(h, a)
		} else {
			h.c.counts.reach("copy failed")
		}
		h.step(func(m *core.Machine) { m.Copied(a.Leg, a.Session, a.Op, res, source) }, "copied %d+%d to leg %d: %v", a.Op.Off, a.Op.Len, a.Leg, res)
	}
	s := &sides{h: h, a: a, src: h.conns[a.Src], dst: h.conns[a.Leg]}
	if s.src == nil || s.src.session != a.SrcSession {
		h.c.after(0, func() { end(core.Lost, true) })
		return
	}
	if s.dst == nil || s.dst.session != a.Session {
		h.c.after(0, func() { end(core.Lost, false) })
		return
	}
	h.c.counts.reach("copy")
	next, stop := iter.Pull(func(yield func(struct{}) bool) {
		over := false
		s.wait = func() bool {
			over = over || !yield(struct{}{})
			return !over
		}
		copied, source, err := mirror.Equalize(s, a.Op.Off, a.Op.Len)
		if over {
			return
		}
		if copied == 0 && err == nil {
			h.c.counts.reach("copy of nothing: hashes are equal")
		}
		if err == nil {
			end(core.OK, false)
			return
		}
		h.c.after(200, func() { end(mirror.LegResult(err), source) })
	})
	s.resume = func() { next() }
	h.c.cleanups = append(h.c.cleanups, stop)
	next()
}

// Hashes implements mirror.Sides.
func (s *sides) Hashes(off, n int64) (source, target []byte) {
	left := 2
	ask := func(cn *conn, into *[]byte) {
		var got []byte
		s.h.ask(cn.leg, cn.session, func(r *replica.Session) (err error) {
			got, err = r.Hashes(context.Background(), off, n)
			return err
		}, func(err error) {
			if err == nil {
				*into = got
			}
			left--
			s.resume()
		})
	}
	ask(s.src, &source)
	ask(s.dst, &target)
	for left > 0 && s.wait() {
	}
	return source, target
}

// Read implements mirror.Sides.
func (s *sides) Read(p []byte, off int64) error {
	buf := make([]byte, len(p))
	err := s.begin(s.src, block.IO{Op: block.OpRead, Off: off, Len: int64(len(p)), Data: buf})()
	copy(p, buf)
	return err
}

// Write implements mirror.Sides. The request has bytes of its own, for it may arrive when
// it was given up.
func (s *sides) Write(p []byte, off int64) (ended func() error) {
	return s.begin(s.dst, block.IO{Op: block.OpWrite, Off: off, Len: int64(len(p)), Data: bytes.Clone(p)})
}

// WriteZeroes implements mirror.Sides.
func (s *sides) WriteZeroes(off, n int64) (ended func() error) {
	return s.begin(s.dst, block.IO{Op: block.OpWriteZeroes, Off: off, Len: n})
}

// begin sends a request; what it returns waits for the answer. Any answer wakes the
// coroutine.
func (s *sides) begin(cn *conn, io block.IO) (ended func() error) {
	answered, err := false, error(nil)
	cn.send(&call{io: io, done: func(e error) {
		answered, err = true, e
		s.resume()
	}})
	return func() error {
		for !answered {
			if !s.wait() {
				return errUnreachable
			}
		}
		return err
	}
}
