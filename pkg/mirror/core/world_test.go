package core

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// world is everything around the machines that decides what they see: replicas
// with volatile and durable content, a store with compare-and-swap, and a
// network that delays, loses and reorders. It is single-threaded and knows only
// its generator, so a seed is the whole history. Blocks are one byte long and
// hold the number of the write that was last in them.
type world struct {
	rng     interface{ IntN(n int) int } // all that is left to chance
	reps    []*replicaModel
	store   storeModel
	holders []*holder
	msgs    []*message  // on their way to a replica, or back
	swaps   []*swapCall // on their way to the store, or back
	conns   map[connKey]*connModel
	lastID  int
	healed  bool // no faults any more
	region  int  // blocks in a region
	rejoin  int64
	lease   int64
	time    int64 // what all holders' clocks say
	turns   bool  // turns to copy come later, else at once

	// Of a scripted history: what the store does to the next swap, and how many
	// messages are held back.
	nextFault storeFault
	behind    int
	onAction  func(h *holder, a Action) // nil, or who counts the machines' actions
	tell      bool                      // keep the trace
	trace     []string
	oracle
}

// replicaModel is one replica. An epoch and session, once seen, survive
// everything; the live session does not survive the process.
type replicaModel struct {
	down, full, failed bool
	life               int // its incarnation
	size               int64
	volatile, durable  []int // by block
	epoch              int
	session            volume.Session
	live               bool // the session (epoch, session) is open

	// Of the write-intent bitmap, by region, durable: the bits of the present
	// generation and of older ones, and what other legs missed. rotation is the
	// present generation's number, which a session begins without.
	current, previous map[int]bool
	missed            map[int]map[int]bool
	rotation          uint64
}

// storeModel is the volume's object.
type storeModel struct {
	version, epoch int
	holder         *holder
	states         []volume.ReplicaState
	changes        []uint64
	lives          []volume.Incarnation
	size, wanted   int64
	clean, paused  bool
}

// holder is one mirror: a machine with its epoch.
type holder struct {
	id            int
	m             *Machine
	epoch         int // 0 until the epoch was taken
	dead, stopped bool
	cut           mask // replicas that it can't open
	began         bool // to serve, but no replica was there yet to tell what it serves
	ops           []*opModel
	grows         []int64 // sizes asked for and not answered
}

func (h *holder) String() string { return fmt.Sprintf("h%d(e%d)", h.id, h.epoch) }

type connKey struct {
	epoch, leg int
	session    volume.Session
}

// connModel is one session's connection.
type connModel struct{ broken bool }

// message is one request to a replica. It is executed at most once; its answer
// may come without that (the connection broke) and the execution after it.
type message struct {
	h        *holder
	a        Action
	op       *opModel // the client's; nil for the machine's own
	executed bool
	ready    bool // the answer is on its way back
	res      Result
	regions  *bitmap.Set
	halfway  bool  // a copy: the source was read
	marked   bool  // a copy: the target has its intent bits
	source   bool  // a failed copy: it was the source
	life     int   // an opening: the replica's incarnation
	vals     []int // read, or being copied
	lost     bool  // the news that the connection broke, rather than a request
}

// swapCall is one Swap.
type swapCall struct {
	h           *holder
	wants       Wants
	answered    bool
	res         Result
	taken       Taken
	readVersion int // of one that may land late
}

func newWorld(seed uint64, replicas int) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, uint64(replicas))), conns: map[connKey]*connModel{}}
	const size = 2
	w.region = 1 + w.rng.IntN(2)
	w.rejoin = int64(4 * w.rng.IntN(3))
	w.lease = 6
	for range replicas {
		w.reps = append(w.reps, &replicaModel{size: size, volatile: make([]int, size), durable: make([]int, size),
			current: map[int]bool{}, previous: map[int]bool{}, missed: map[int]map[int]bool{}})
		w.store.states = append(w.store.states, volume.InSync)
		w.store.changes = append(w.store.changes, 0)
		w.store.lives = append(w.store.lives, "")
	}
	w.store.size, w.store.wanted, w.store.clean = size, size, true
	w.registers = make([]register, size)
	for b := range w.registers {
		w.registers[b].ids = []int{0}
	}
	w.dropped = map[int]bool{}
	return w
}

func (w *world) logf(format string, args ...any) {
	if w.tell {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
	}
}

// newHolder begins an opening; overtaking a living holder is allowed, for
// liveness decides about availability only.
func (w *world) newHolder() *holder {
	cfg := Config{Patience: 16, OpPatience: 64, Rejoin: w.rejoin, Lease: w.lease, Reopen: 4, CopyBytes: int64(1 + w.rng.IntN(3)), RegionBytes: int64(w.region), Settle: 3, Corrections: 1}
	local := w.rng.IntN(len(w.reps) + 1) // or on a node without a replica
	for i := range w.reps {
		cfg.Legs = append(cfg.Legs, LegConfig{Local: i == local})
	}
	m, err := New(cfg)
	if err != nil {
		w.fail("%v", err)
	}
	h := &holder{id: len(w.holders), m: m}
	w.holders = append(w.holders, h)
	w.event(h, m.Start, "start")
	return h
}

// latest is the newest holder that lives, or nil.
func (w *world) latest() *holder {
	for _, h := range slices.Backward(w.holders) {
		if !h.dead && !h.stopped {
			return h
		}
	}
	return nil
}

// event gives a machine one event and takes its actions.
func (w *world) event(h *holder, f func(), what string, args ...any) {
	if h.dead {
		return
	}
	h.m.Clock(w.time)
	f()
	actions := h.m.Take(nil)
	if w.tell {
		w.logf("%v %s -> %v", h, fmt.Sprintf(what, args...), h.m)
	}
	for _, a := range actions {
		w.act(h, a)
	}
	if h.began && !h.stopped {
		w.serves(h)
	}
	if err := h.m.CheckInvariants(); err != nil {
		w.fail("%v: %v", h, err)
	}
	for _, o := range h.m.inflight {
		if op, ok := o.User.(*opModel); ok && op.over() && !h.dead {
			w.fail("%v still works on op %d, which is over", h, op.id)
		}
	}
	w.checkEqualWhenQuiet(h)
	w.checkDeltas()
}

func (w *world) act(h *holder, a Action) {
	if w.onAction != nil {
		w.onAction(h, a)
	}
	switch a.Kind {
	case Open, Copy, Grow:
		w.logf("    %s leg %d session %d size %d", [...]string{Open: "open", Copy: "copy", Grow: "grow"}[a.Kind], a.Leg, a.Session, a.Size)
		w.msgs = append(w.msgs, &message{h: h, a: a})
	case AskTurn:
		w.logf("    ask for a turn of leg %d session %d", a.Leg, a.Session)
		if !w.turns {
			w.event(h, func() { h.m.Turn(a.Leg, a.Session, h.m.cfg.CopyBytes) }, "turn")
			return
		}
		w.msgs = append(w.msgs, &message{h: h, a: a})
	case ReadMap, Rotate, DropPrevious, DropCopied:
		w.logf("    %s leg %d session %d: %d %v %v %v", actionNames[a.Kind], a.Leg, a.Session, a.Seq, a.Map, a.Away, a.Progress)
		w.msgs = append(w.msgs, &message{h: h, a: a})
		if a.Kind == ReadMap && a.Leg == a.About && w.store.holder == h {
			w.forgetful &^= bit(a.Leg) // all that it lacks will be copied
		}
	case Send:
		op, _ := a.Op.User.(*opModel)
		w.logf("    send %v to leg %d", a.Op.Kind, a.Leg)
		if op != nil {
			if op.over() {
				w.fail("%v sends op %d, which is over", h, op.id)
			}
			op.sends++
		}
		msg := &message{h: h, a: a, op: op}
		if c := w.conns[h.key(a.Leg, a.Session)]; c == nil || c.broken {
			msg.executed, msg.ready, msg.res = true, true, Lost
		}
		w.msgs = append(w.msgs, msg)
	case Drop:
		w.logf("    drop leg %d session %d", a.Leg, a.Session)
		if c := w.conns[h.key(a.Leg, a.Session)]; c != nil {
			c.broken = true
			w.cutOff(h, a.Leg, a.Session)
		}
	case Swap:
		w.logf("    swap %+v", *a.Change)
		w.swaps = append(w.swaps, &swapCall{h: h, wants: *a.Change})
	case Reply:
		op := a.Op.User.(*opModel)
		w.logf("    reply op %d: %v", op.id, a.Result)
		w.replied(op, a.Result)
	case Serve:
		w.logf("    serve")
		w.serves(h)
	case Resized:
		w.logf("    resized to %d", a.Size)
	case GrowDone:
		w.logf("    grow done: %v %s", a.Result, a.Reason)
		h.grows = slices.DeleteFunc(h.grows, func(size int64) bool { return a.Result != OK || size <= a.Size })
	case Stop:
		w.logf("    stop: %v %s", a.Result, a.Reason)
		h.stopped = true
	}
}

func (h *holder) key(leg int, s volume.Session) connKey { return connKey{h.epoch, leg, s} }

// cutOff answers all that is under way on a connection with Lost; what was not
// executed may still be, as bytes that wait in the replica's socket.
func (w *world) cutOff(h *holder, leg int, s volume.Session) {
	for _, m := range w.msgs {
		if m.h == h && m.a.Leg == leg && m.a.Session == s && m.a.Kind != Open && !m.lost && !m.ready {
			m.ready, m.res = true, Lost
		}
	}
}

// breakConn breaks a connection; the machine will be told, perhaps before it
// knows that there was one.
func (w *world) breakConn(h *holder, leg int, s volume.Session) {
	c := w.conns[h.key(leg, s)]
	if c == nil || c.broken {
		return
	}
	c.broken = true
	w.cutOff(h, leg, s)
	w.msgs = append(w.msgs, &message{h: h, a: Action{Leg: leg, Session: s}, lost: true, executed: true, ready: true})
}

// crash ends a replica's process; without power its volatile bytes go too, each
// block by chance.
func (w *world) crash(leg int, power bool) {
	r := w.reps[leg]
	w.logf("replica %d crashes, power loss %v", leg, power)
	r.down, r.live = true, false
	if power {
		r.life++
		w.forgets(leg)
		for b := range r.volatile {
			if w.rng.IntN(2) == 0 {
				r.volatile[b] = r.durable[b]
			}
		}
		copy(r.durable, r.volatile)
	}
	for _, h := range w.holders {
		if s, _ := h.m.Session(leg); s > 0 {
			w.breakConn(h, leg, s)
		}
	}
}

// execute carries a message out at its replica.
func (w *world) execute(m *message) {
	if m.executed {
		return
	}
	m.executed = true
	res := w.atReplica(m)
	if m.a.Kind == Copy && !m.halfway {
		if res == OK {
			m.executed, m.halfway = false, true // the write follows
			return
		}
		m.source = true
	}
	if !m.ready {
		m.ready, m.res = true, res
	}
}

func (w *world) atReplica(m *message) Result {
	r := w.reps[m.a.Leg]
	if m.a.Kind == Copy && !m.halfway {
		return w.readSource(m)
	}
	switch {
	case m.a.Kind == AskTurn: // not this replica's to answer
		return OK
	case r.down, m.a.Kind == Open && m.h.cut.has(m.a.Leg), m.a.Kind == Open && !w.healed && w.rng.IntN(8) == 0: // only this holder can't reach it
		return Lost
	case m.a.Kind == Open:
		return w.openAt(r, m)
	case !r.live || r.epoch != m.h.epoch || r.session != m.a.Session:
		return Fenced
	case r.failed:
		return Broken
	case m.a.Kind == Grow:
		if r.full || !w.healed && w.rng.IntN(4) == 0 {
			return NoSpace
		}
		r.grow(m.a.Size)
		return OK
	case m.a.Kind == Copy:
		for b := range w.lacking(m) { // only what differs is written
			r.current[b/w.region] = r.current[b/w.region] || !m.marked
			r.volatile[b] = m.vals[b-int(m.a.Op.Off)]
		}
		return OK
	case m.a.Kind == ReadMap:
		m.regions = w.readMap(r, m.a)
		return OK
	case m.a.Kind == Rotate:
		return r.rotate(m.a.Seq)
	case m.a.Kind == DropPrevious:
		return w.dropPrevious(r, m.a)
	case m.a.Kind == DropCopied:
		return w.dropCopied(r, m.a)
	}
	if m.a.Op.Kind == Change {
		for b := m.a.Op.Off; b < m.a.Op.Off+m.a.Op.Len; b++ {
			r.current[int(b)/w.region] = true
		}
	}
	return r.serve(m)
}

// openAt is the fence.
func (w *world) openAt(r *replicaModel, m *message) Result {
	switch {
	case r.failed:
		return Broken
	case m.h.epoch < r.epoch, m.h.epoch == r.epoch && m.a.Session <= r.session:
		return Fenced
	}
	r.epoch, r.session, r.live = m.h.epoch, m.a.Session, true
	m.life = r.life
	_ = r.rotate(^uint64(0)) // a session begins with old bits only,
	r.rotation = 0           // and without a number
	r.grow(m.a.Size)
	w.conns[m.h.key(m.a.Leg, m.a.Session)] = &connModel{}
	return OK
}

// readSource is the first half of a copy.
func (w *world) readSource(m *message) Result {
	r := w.reps[m.a.Src]
	switch c := w.conns[m.h.key(m.a.Src, m.a.SrcSession)]; {
	case r.down || c.broken:
		return Lost
	case !r.live || r.epoch != m.h.epoch || r.session != m.a.SrcSession:
		return Fenced
	case r.failed:
		return Broken
	}
	m.vals = slices.Clone(r.volatile[m.a.Op.Off : m.a.Op.Off+m.a.Op.Len])
	w.markTarget(m)
	return OK
}

// lacking is the blocks of a copy, halfway, in which its target differs.
func (w *world) lacking(m *message) iter.Seq[int] {
	return func(yield func(int) bool) {
		for k, v := range m.vals {
			if b := int(m.a.Op.Off) + k; w.reps[m.a.Leg].volatile[b] != v && !yield(b) {
				return
			}
		}
	}
}

// markTarget has the second half of a copy begin, perhaps: the target makes intent bits
// durable, and has not written yet.
func (w *world) markTarget(m *message) {
	r := w.reps[m.a.Leg]
	if r.down || r.failed || !r.live || r.epoch != m.h.epoch || r.session != m.a.Session {
		return
	}
	for b := range w.lacking(m) {
		if m.marked = m.marked || w.rng.IntN(2) == 1; !m.marked {
			return
		}
		r.current[b/w.region] = true
	}
}

func (r *replicaModel) grow(size int64) {
	for r.size < size {
		r.size++
		r.volatile, r.durable = append(r.volatile, 0), append(r.durable, 0)
	}
}

// serve is one read, change or flush at a live session.
func (r *replicaModel) serve(m *message) Result {
	op := m.a.Op
	switch {
	case op.Kind == Probe, op.Kind == Confirm:
		return OK
	case op.Kind == Flush:
		copy(r.durable, r.volatile)
		return OK
	case op.Off+op.Len > r.size:
		return Refused
	case op.Kind == Read:
		m.vals = slices.Clone(r.volatile[op.Off : op.Off+op.Len])
		return OK
	case r.full:
		return NoSpace
	}
	for b := op.Off; b < op.Off+op.Len; b++ {
		r.volatile[b] = m.op.id
	}
	return OK
}

// deliver brings an answer to its machine.
func (w *world) deliver(m *message) {
	leg, s := m.a.Leg, m.a.Session
	if i := slices.Index(w.msgs, m); m.executed && i >= 0 {
		w.msgs = slices.Delete(w.msgs, i, i+1)
	} else if i >= 0 { // a zombie: it may still be executed, but was answered
		w.msgs[i] = &message{h: &holder{id: m.h.id, epoch: m.h.epoch, m: m.h.m, dead: true}, a: m.a, op: m.op, ready: true, vals: m.vals, halfway: m.halfway, marked: m.marked}
	}
	const what = "leg %d session %d answers %v (%s)"
	switch {
	case m.lost:
		w.event(m.h, func() { m.h.m.LegLost(leg, s, "connection reset") }, what, leg, s, m.res, "lost")
	case m.a.Kind == Open:
		w.event(m.h, func() { m.h.m.Opened(leg, s, Opening{m.res, m.res.String(), incarnation(m.life)}) }, what, leg, s, m.res, "open")
	case m.a.Kind == Copy:
		w.event(m.h, func() { m.h.m.Copied(leg, s, m.a.Op, m.res, m.source) }, what, leg, s, m.res, "copy")
	case m.a.Kind == AskTurn: // also after the session is over
		bytes := int64(1 + w.rng.IntN(3))
		w.event(m.h, func() { m.h.m.Turn(leg, s, bytes) }, "leg %d session %d may copy %d", leg, s, bytes)
	case m.a.Kind == Grow:
		w.event(m.h, func() { w.grown(m) }, what, leg, s, m.res, "grow")
	case m.a.Kind == ReadMap:
		w.event(m.h, func() { m.h.m.MapRead(m.a, m.res, m.regions) }, what, leg, s, m.res, "map")
	case m.a.Kind == Rotate:
		w.event(m.h, func() { m.h.m.Rotated(m.a, m.res) }, what, leg, s, m.res, "rotate")
	case m.a.Kind == DropPrevious, m.a.Kind == DropCopied:
		w.event(m.h, func() { m.h.m.Dropped(m.a, m.res) }, what, leg, s, m.res, "drop previous")
	default:
		if m.op != nil && m.op.reply == 0 {
			m.op.vals = m.vals
		}
		w.event(m.h, func() {
			m.h.m.Answer(leg, s, m.a.Op, m.res)
			if m.op != nil {
				m.op.sends--
			}
		}, what, leg, s, m.res, m.a.Op.Kind)
	}
}

// advanceSwap takes a swap one step further, with this fault of the store.
func (w *world) advanceSwap(c *swapCall, fault storeFault) {
	remove := func() { w.swaps = slices.DeleteFunc(w.swaps, func(x *swapCall) bool { return x == c }) }
	switch {
	case c.answered:
		remove()
		w.swapDone(c)
	case c.readVersion > 0: // answered as Unknown long ago
		remove()
		if c.readVersion == w.store.version {
			w.logf("a late swap lands")
			w.land(c)
		}
	case fault == storeLate && w.store.holds(c):
		late := *c
		late.readVersion = w.store.version
		w.swaps = append(w.swaps, &late)
		c.answered, c.res = true, Unknown
	case fault == storeBefore || fault == storeLate:
		c.answered, c.res = true, Unknown
	case !w.store.holds(c):
		c.answered, c.res = true, Fenced
	default:
		w.land(c)
		c.answered = true
		if fault == storeAfter && !c.wants.Take { // the nonce tells
			c.res = Unknown
		}
	}
}

type storeFault int

const (
	storeFine storeFault = iota
	storeBefore
	storeAfter
	storeLate
)

// holds is the check that every swap but the first makes on what it has read.
func (s *storeModel) holds(c *swapCall) bool {
	return c.wants.Take || s.holder == c.h && s.epoch == c.h.epoch
}

// land is a successful compare-and-swap.
func (w *world) land(c *swapCall) {
	s := &w.store
	s.version++
	if c.wants.Take {
		c.taken = Taken{States: slices.Clone(s.states), Changes: slices.Clone(s.changes), Incarnations: slices.Clone(s.lives), Reasons: make([]string, len(s.states)), Size: s.size, WasClean: s.clean, Paused: s.paused}
		s.epoch++
		s.holder, s.clean = c.h, false
		c.h.epoch = s.epoch
		return
	}
	copy(s.states, c.wants.States)
	copy(s.changes, c.wants.Changes)
	copy(s.lives, c.wants.Incarnations)
	s.size, s.paused = c.wants.Size, c.wants.Paused
	if c.wants.Release {
		s.holder, s.clean = nil, c.wants.Clean
	}
	w.checkStore()
}

func (w *world) swapDone(c *swapCall) {
	if c.wants.Take {
		if c.res == Unknown {
			c.res = Lost
		}
		w.event(c.h, func() { c.h.m.TakeDone(c.res, c.taken) }, "take %v", c.res)
		return
	}
	w.event(c.h, func() { c.h.m.SwapDone(c.res) }, "swap %v", c.res)
}

func (w *world) grown(m *message) {
	m.h.m.Grown(m.a, m.res, m.res.String())
}
