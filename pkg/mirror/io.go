package mirror

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/pace"
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

	began  time.Time
	window *pace.Window // that counts it; nil without, for the most part

	reads atomic.Int32 // of a read: how often it was sent
	data  []byte       // of a read that was sent again: what was read, in a buffer of its own
}

// sub is the part of a request that one leg serves.
type sub struct {
	data    []byte // as request.data
	io      block.IO
	req     *request
	leg     int
	session volume.Session
	given   atomic.Bool // to a leg, which has not answered
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
	r := m.begin(io)
	if r == nil {
		return
	}
	var buf [core.MaxLegs + 2]core.Action
	m.lock()
	m.core.Submit(&r.op)
	actions := m.takeLocked(buf[:0])
	m.mu.Unlock()
	for i := range actions {
		m.carryOut(&actions[i], io.Loop)
	}
}

// begin makes a request of io, or answers it if it is not one for the replicas.
func (m *Mirror) begin(io *block.IO) *request {
	if err := block.CheckRange(io, m.Size()); err != nil {
		io.Done(io, err)
		return nil
	}
	if io.Len == 0 && io.Op != block.OpFlush {
		io.Done(io, nil)
		return nil
	}
	r := requests.Get().(*request)
	r.m, r.io, r.err = m, io, nil
	r.refs.Store(1)
	r.reads.Store(0)
	switch io.Op {
	case block.OpRead:
		r.op.Kind = core.Read
	case block.OpFlush:
		r.op.Kind = core.Flush
	default:
		r.op.Kind = core.Change
	}
	r.op.Off, r.op.Len = io.Off, io.Len
	if r.window = m.opt.Pace.Window(); r.window != nil {
		r.began = time.Now()
		r.window.Begin()
	}
	return r
}

// counted tells the window how long the request took.
func (r *request) counted() {
	kind := pace.Write
	switch r.op.Kind {
	case core.Read:
		kind = pace.Read
	case core.Flush:
		kind = pace.Flush
	}
	r.window.End(kind, time.Since(r.began))
	r.window = nil
}

// send submits an operation to a leg; with a loop, on its thread.
func (m *Mirror) send(a *core.Action, loop block.Loop) {
	if dev, io := m.prepare(a.Leg, a.Session, a.Op); io != nil {
		io.Loop = loop
		dev.Submit(io)
	}
}

// prepare makes an IO of an operation for a leg; nil if the leg has been given
// up, which is answered, or if the operation is the machine's own.
func (m *Mirror) prepare(leg int, s volume.Session, op *core.Op) (Leg, *block.IO) {
	r, ok := op.User.(*request)
	if !ok {
		m.sendOwn(leg, s, op)
		return nil, nil
	}
	l := m.legs[leg].Load()
	if l == nil || l.session != s {
		m.answer(leg, s, op, errNoLeg)
		r.release(nil)
		return nil, nil
	}
	p, data := &r.subs[leg], r.io.Data
	if op.Kind == core.Read && r.reads.Add(1) > 1 {
		// A leg that was given up may still have the request, and fill its buffer
		// with what the replica has by then.
		p = &sub{req: r, leg: leg, data: block.Alloc(len(data))}
		data = p.data
	} else if p.given.Swap(true) {
		// It is sent again in the leg's next session, while whoever was to send it in
		// the last one is still about to.
		p = &sub{req: r, leg: leg}
	}
	p.session = s
	p.io = block.IO{Op: r.io.Op, FUA: r.io.FUA, NoHole: r.io.NoHole, Off: r.io.Off, Len: r.io.Len, Data: data, Done: subDone, User: p}
	return l.dev, &p.io
}

var errNoLeg = fmt.Errorf("the leg was given up: %w", volume.ErrUnavailable)

// subDone takes a leg's answer to the machine.
func subDone(io *block.IO, err error) {
	p := io.User.(*sub)
	r, loop := p.req, io.DoneOn
	to := core.Action{Leg: p.leg, Session: p.session, Op: &r.op}
	p.given.Store(false) // the answer may have it sent again, with this part
	var buf [core.MaxLegs + 2]core.Action
	actions := r.m.answered(buf[:0], to, err)
	if p.data != nil && slices.ContainsFunc(actions, func(a core.Action) bool { return a.Kind == core.Reply && a.Op == &r.op }) {
		r.data = p.data // this answer is the one
	}
	r.m.run(actions, loop)
	r.release(loop)
}

// answered gives the machine a leg's answer to a Send, and takes its actions.
func (m *Mirror) answered(into []core.Action, to core.Action, err error) []core.Action {
	m.lock()
	m.core.Answer(to.Leg, to.Session, to.Op, LegResult(err))
	into = m.takeLocked(into)
	m.mu.Unlock()
	if err != nil {
		m.log.Debug("replica answered with an error", "replica", m.reps[to.Leg].Node, "error", err)
	}
	return into
}

func (m *Mirror) answer(leg int, s volume.Session, op *core.Op, err error) {
	m.run(m.answered(nil, core.Action{Leg: leg, Session: s, Op: op}, err), nil)
}

// sendOwn submits one of the machine's own operations: a flush before a leg is
// promoted or the volume closed, a probe, or a confirm: an empty read, which the
// session answers without its disk.
func (m *Mirror) sendOwn(leg int, s volume.Session, op *core.Op) {
	io := &block.IO{Op: block.OpFlush}
	switch n := min(int64(block.Align), m.Size()); op.Kind {
	case core.Confirm:
		io = &block.IO{Op: block.OpRead}
	case core.Probe:
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
// last answer does. With a loop, this is its thread.
func reply(op *core.Op, res core.Result, loop block.Loop) {
	r := op.User.(*request)
	if res != core.OK {
		r.err = resultError(res, r.io.Op.String())
	}
	r.release(loop)
}

func (r *request) release(loop block.Loop) {
	if r.refs.Add(-1) != 0 {
		return
	}
	if r.window != nil {
		r.counted()
	}
	io, err := r.io, r.err
	if r.data != nil {
		copy(io.Data, r.data)
	}
	r.io, r.data = nil, nil
	for i := range r.subs {
		r.subs[i].io = block.IO{}
		r.subs[i].given.Store(false)
	}
	requests.Put(r)
	io.DoneOn = loop
	io.Done(io, err)
}
