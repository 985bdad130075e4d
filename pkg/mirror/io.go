package mirror

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// request is one IO of the export on its way through the mirror. There is one
// reference for the reply and one for every sending to a replica, from the
// machine's decision to the replica's answer.
type request struct {
	op   core.Op
	m    *Mirror
	io   *block.IO
	err  error
	refs atomic.Int32
	subs [core.MaxLegs]sub
}

// sub is the part of a request that one leg serves.
type sub struct {
	io      block.IO
	req     *request
	leg     int
	session volume.Session
}

var requests = sync.Pool{New: func() any {
	r := &request{}
	r.op.User = r
	for i := range r.subs {
		r.subs[i].req, r.subs[i].leg = r, i
	}
	return r
}}

// Submit implements block.Device.
func (m *Mirror) Submit(io *block.IO) {
	if err := block.CheckRange(io, m.Size()); err != nil {
		io.Done(io, err)
		return
	}
	if io.Len == 0 && io.Op != block.OpFlush {
		io.Done(io, nil)
		return
	}
	r := requests.Get().(*request)
	r.m, r.io, r.err = m, io, nil
	r.refs.Store(1)
	switch io.Op {
	case block.OpRead:
		r.op.Kind = core.Read
	case block.OpFlush:
		r.op.Kind = core.Flush
	default:
		r.op.Kind = core.Change
	}
	r.op.Off, r.op.Len = io.Off, io.Len

	var buf [core.MaxLegs + 2]core.Action
	m.mu.Lock()
	m.core.Submit(&r.op)
	actions := m.takeLocked(buf[:0])
	m.mu.Unlock()
	m.run(actions)
}

// send submits an operation to a leg.
func (m *Mirror) send(leg int, s volume.Session, op *core.Op) {
	r, ok := op.User.(*request)
	if !ok {
		m.sendOwn(leg, s, op)
		return
	}
	l := m.legs[leg].Load()
	if l == nil || l.session != s {
		m.answer(leg, s, op, errNoLeg)
		r.release()
		return
	}
	p := &r.subs[leg]
	p.session = s
	p.io = block.IO{Op: r.io.Op, FUA: r.io.FUA, NoHole: r.io.NoHole, Off: r.io.Off, Len: r.io.Len, Data: r.io.Data, Done: subDone, User: p}
	l.dev.Submit(&p.io)
}

var errNoLeg = fmt.Errorf("the leg was given up: %w", volume.ErrUnavailable)

// subDone takes a leg's answer to the machine.
func subDone(io *block.IO, err error) {
	p := io.User.(*sub)
	m := p.req.m
	m.answer(p.leg, p.session, &p.req.op, err)
	p.req.release()
}

func (m *Mirror) answer(leg int, s volume.Session, op *core.Op, err error) {
	var buf [core.MaxLegs + 2]core.Action
	m.mu.Lock()
	m.core.Answer(leg, s, op, errorResult(err))
	actions := m.takeLocked(buf[:0])
	m.mu.Unlock()
	if err != nil {
		m.log.Debug("replica answered with an error", "replica", m.reps[leg].Node, "error", err)
	}
	m.run(actions)
}

// sendOwn submits one of the machine's own operations: a flush before a leg is
// promoted or the volume closed, or a probe.
func (m *Mirror) sendOwn(leg int, s volume.Session, op *core.Op) {
	io := &block.IO{Op: block.OpFlush}
	if op.Kind != core.Flush {
		n := min(int64(block.Align), m.Size())
		io = &block.IO{Op: block.OpRead, Len: n, Data: block.Alloc(int(n))}
	}
	io.Done = func(_ *block.IO, err error) { m.answer(leg, s, op, err) }
	l := m.legs[leg].Load()
	if l == nil || l.session != s {
		io.Done(io, errNoLeg)
		return
	}
	// A local flush would keep the goroutine that brought the event busy.
	m.spawn(func() { l.dev.Submit(io) })
}

// reply answers the export, unless a replica still has the buffer: then its
// last answer does.
func reply(op *core.Op, res core.Result) {
	r := op.User.(*request)
	if res != core.OK {
		r.err = resultError(res, r.io.Op.String())
	}
	r.release()
}

func (r *request) release() {
	if r.refs.Add(-1) != 0 {
		return
	}
	io, err := r.io, r.err
	r.io = nil
	for i := range r.subs {
		r.subs[i].io = block.IO{}
	}
	requests.Put(r)
	io.Done(io, err)
}
