package core

import (
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// oracle knows what clients were promised, block by block.
type oracle struct {
	registers []register
	current   *holder      // with the highest epoch that ever served
	dropped   map[int]bool // writes that a takeover found to be nowhere
	forgetful mask         // replicas that lost power since they were last filled
	failure   string
}

// register is one block's history: the writes that may be in it, in order. The
// first is what the present holder found.
type register struct {
	ids                  []int
	acked, seen, durable int // indexes into ids: the least that may be read, was read, survives power loss
}

// opModel is one request of a client.
type opModel struct {
	h       *holder
	op      Op
	id      int
	reply   int // 0 none, 1 well, 2 badly
	vals    []int
	least   []int // by block: what the registers promised when it was submitted
	late    bool  // a read that was asked of a holder after another one had served
	counted bool  // in the registers
	sends   int   // Send actions that were not answered
}

// over says whether whoever submitted the operation may use it for another one:
// it was replied to, and every Send of it was answered.
func (o *opModel) over() bool { return o.reply != 0 && o.sends == 0 }

func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, args...)
	}
}

// submit makes a client's request.
func (w *world) submit(h *holder, k Kind, off, n int64) {
	w.lastID++
	op := &opModel{h: h, id: w.lastID}
	op.op = Op{Kind: k, Off: off, Len: n, User: op}
	h.ops = append(h.ops, op)
	switch {
	case w.current == h:
		w.enter(op)
	case k == Read && w.current != nil && h.epoch < w.current.epoch:
		op.late, op.least = true, w.promises()
	}
	w.event(h, func() { h.m.Submit(&op.op) }, "op %d: %v %d+%d", op.id, k, off, n)
}

// enter puts a request of the current holder into the registers.
func (w *world) enter(op *opModel) {
	op.counted = true
	op.least = w.promises()
	if op.op.Kind == Change {
		for b := op.op.Off; b < op.op.Off+op.op.Len; b++ {
			w.registers[b].ids = append(w.registers[b].ids, op.id)
		}
	}
}

func (w *world) promises() []int {
	out := make([]int, len(w.registers))
	for b := range w.registers {
		out[b] = max(w.registers[b].acked, w.registers[b].seen)
	}
	return out
}

// replied checks an answer to a client.
func (w *world) replied(op *opModel, res Result) {
	if op.reply != 0 {
		w.fail("op %d was replied to twice", op.id)
	}
	op.reply = 2
	if res != OK {
		return
	}
	op.reply = 1
	switch op.op.Kind {
	case Change:
		w.acknowledged(op)
	case Flush:
		w.flushed(op)
	case Read:
		w.wasRead(op)
	}
}

func (w *world) acknowledged(op *opModel) {
	for b := op.op.Off; b < op.op.Off+op.op.Len; b++ {
		r := &w.registers[b]
		i := slices.Index(r.ids, op.id)
		switch {
		case i >= 0:
			r.acked = max(r.acked, i)
		case w.dropped[op.id] || !op.counted:
			w.fail("op %d of %v was acknowledged, and a newer holder does not have it", op.id, op.h)
		}
	}
}

// flushed: what was acknowledged before the flush began survives from now on.
func (w *world) flushed(op *opModel) {
	if !op.counted {
		return // it promised nothing
	}
	for b, i := range op.least {
		r := &w.registers[b]
		if i >= len(r.ids) {
			w.fail("op %d flushed what a newer holder does not have", op.id)
			return
		}
		r.durable = max(r.durable, min(i, r.acked))
	}
}

func (w *world) wasRead(op *opModel) {
	for k, id := range op.vals {
		b := int(op.op.Off) + k
		r := &w.registers[b]
		i := slices.Index(r.ids, id)
		switch {
		case i < 0 && (op.late || op.h == w.current):
			w.fail("op %d read %d in block %d, may be %v", op.id, id, b, r.ids)
		case op.least != nil && i >= 0 && i < op.least[b]:
			w.fail("op %d read %d in block %d: back in time, may be %v", op.id, id, b, r.ids[op.least[b]:])
		case op.h == w.current:
			r.seen = max(r.seen, i)
		}
	}
}

// serves: a holder begins to serve. What its replicas have is the truth from now
// on; it must be all that was promised.
func (w *world) serves(h *holder) {
	if w.current != nil && h.epoch < w.current.epoch {
		h.began = false
		return // overtaken while it opened: it will find out
	}
	var legs []int
	for i, r := range w.reps {
		s, up := h.m.Session(i)
		if up && h.m.readable().has(i) && r.live && r.epoch == h.epoch && r.session == s {
			legs = append(legs, i)
		}
	}
	if h.began = len(legs) == 0; h.began {
		return // they died meanwhile: it will find out, or they come back
	}
	lossy := true // unless one that it serves from has kept everything
	for _, i := range legs {
		lossy = lossy && w.forgetful.has(i)
	}
	for b := range w.registers {
		w.settle(h, b, legs, lossy)
	}
	w.forgetful = 0
	w.current = h
	for _, op := range h.ops { // they came before it served
		if op.reply == 0 {
			w.enter(op)
		}
	}
}

// settle: a block that is not dirty has one content on all legs; one that is has
// perhaps several, none of which lacks what was promised, and any of which may
// be the one that it is corrected to.
func (w *world) settle(h *holder, b int, legs []int, lossy bool) {
	r := &w.registers[b]
	least := max(r.acked, r.seen)
	if lossy {
		least = r.durable
	}
	from, to, dirty := len(r.ids), -1, h.m.dirty.Has(b/w.region)
	if dirty { // nothing is decided yet; another holder may begin anew with all of them
		from = least
		for leg, rep := range w.reps {
			if w.store.states[leg] == volume.InSync {
				to = max(to, slices.Index(r.ids, rep.volatile[b]))
			}
		}
	}
	for _, leg := range legs {
		val := w.reps[leg].volatile[b]
		if first := w.reps[legs[0]].volatile[b]; val != first && !dirty {
			w.fail("a holder serves replicas %v, which differ in block %d: %d and %d", legs, b, first, val)
		}
		i := slices.Index(r.ids, val)
		if i < least {
			w.fail("block %d has %d on %d after a takeover (power loss %v), may be %v of %v", b, val, leg, lossy, r.ids[min(least, len(r.ids)):], r.ids)
			return
		}
		from, to = min(from, i), max(to, i)
	}
	if !lossy {
		for _, id := range r.ids[to+1:] {
			w.dropped[id] = true
		}
	}
	r.ids = r.ids[:to+1]
	r.acked, r.seen = from, from
}

// forgets: a replica lost power. It matters if the replica may be used next.
func (w *world) forgets(leg int) {
	counts := w.store.states[leg] == volume.InSync
	for _, h := range w.holders {
		counts = counts || !h.dead && h.m.counted.has(leg)
	}
	if counts {
		w.forgetful |= bit(leg)
	}
}

// checkStore checks what the store says after each change of it.
func (w *world) checkStore() {
	inSync := 0
	for i, s := range w.store.states {
		if s != volume.InSync {
			continue
		}
		inSync++
		if r := w.reps[i]; r.size < w.store.size {
			w.fail("replica %d is InSync with %d of %d bytes", i, r.size, w.store.size)
		}
	}
	if inSync == 0 {
		w.fail("no replica is InSync")
	}
	for int64(len(w.registers)) < w.store.size {
		w.registers = append(w.registers, register{ids: []int{0}})
	}
	if w.store.holder == nil && w.store.clean {
		w.checkEqual("after a clean close", nil, func(i int) bool { return w.store.states[i] == volume.InSync })
	}
}

// checkEqualWhenQuiet: with nothing under way, the live InSync replicas of the
// current holder are equal.
func (w *world) checkEqualWhenQuiet(h *holder) {
	if h != w.current || h.stopped || w.store.holder != h || h.m.phase < Serving || slices.ContainsFunc(h.m.inflight, func(o *Op) bool { return o.Kind == Change }) {
		return
	}
	w.checkEqual("in a quiet volume", h.m.dirty, func(i int) bool {
		s, up := h.m.Session(i)
		r := w.reps[i]
		return w.store.states[i] == volume.InSync && up && r.live && r.epoch == h.epoch && r.session == s
	})
}

// checkEqual compares replicas, but for regions that are dirty.
func (w *world) checkEqual(when string, dirty *bitmap.Set, of func(leg int) bool) {
	first := -1
	for i, r := range w.reps {
		switch {
		case !of(i):
		case first < 0:
			first = i
		default:
			for b := range w.store.size {
				if r.volatile[b] != w.reps[first].volatile[b] && !dirty.Has(int(b)/w.region) {
					w.fail("%s InSync replicas %d and %d differ in block %d: %v %v", when, first, i, b, w.reps[first].volatile, r.volatile)
				}
			}
		}
		if of(i) && w.store.clean && !slices.Equal(r.volatile, r.durable) {
			w.fail("%s replica %d is not flushed", when, i)
		}
	}
}

// checkDeltas: where a replica that is not InSync may differ, now or after a crash,
// from one that is InSync and is believed about it, one of the two has a bit.
func (w *world) checkDeltas() {
	for x, away := range w.reps {
		for i, r := range w.reps {
			if w.store.states[x] == volume.InSync || w.store.states[i] != volume.InSync || w.store.changes[i] >= w.store.changes[x] || r.failed || away.failed {
				continue
			}
			for b := range min(w.store.size, r.size, away.size) {
				g := int(b) / w.region
				if !mayDiffer(r, away, b) || r.missed[x][g] || r.current[g] || r.previous[g] || away.current[g] || away.previous[g] {
					continue
				}
				w.fail("delta: replica %d may lack block %d of %d, which does not know it: %v %v, %v %v", x, b, i, away.volatile, away.durable, r.volatile, r.durable)
			}
		}
	}
}

func mayDiffer(r, s *replicaModel, b int64) bool {
	return r.volatile[b] != s.volatile[b] || r.durable[b] != s.durable[b] || r.volatile[b] != s.durable[b] || r.durable[b] != s.volatile[b]
}
