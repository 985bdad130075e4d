package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Mirror serves one volume in one epoch. It is a block.Device.
type Mirror struct {
	opt   Options
	log   *slog.Logger
	claim *Claim

	reps   []volume.Replica // in the order of the legs; identity only
	direct bool
	local  int // the leg that is served in this process, or -1
	size   atomic.Int64

	mu   sync.Mutex
	core *core.Machine // Guarded by mu.

	legs [core.MaxLegs]atomic.Pointer[openLeg]
	// ending is what was last in legs, whose close may still be answering requests.
	ending [core.MaxLegs]atomic.Pointer[openLeg]
	loop   atomic.Pointer[block.Loop] // where legs receive; nil without

	began  time.Time       // what the machine's clock counts from
	ctx    context.Context // ends everything that waits
	cancel context.CancelFunc
	tasks  tasks

	resyncs resyncs

	served  chan struct{} // closed by Serve
	stopped chan struct{} // closed by Stop
	stopErr error         // valid once stopped is closed
	takeErr error         // why the epoch was not taken; set before the machine stops for it
	growMu  sync.Mutex
	growing []growth // who waits for a larger size. Guarded by growMu.
}

// openLeg is a leg's device with the session that it was opened as.
type openLeg struct {
	dev     Leg
	session volume.Session
	joined  atomic.Bool // the mirror's loop
	closed  chan struct{}
}

// close ends the session. What is under way on it is answered with an error
// first.
func (l *openLeg) close() {
	_ = l.dev.Close() // its content is judged by the machine, not by this
	close(l.closed)
}

// Open takes the volume's next epoch, fences its replicas and serves it. On
// error nothing is left: no lock in the store (or, if the store went away
// meanwhile, one whose lease this node may let run out), no open replica. The
// context bounds the opening only.
func Open(ctx context.Context, opt Options) (*Mirror, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, err
	}
	v, err := opt.Volumes.Get(ctx, opt.Volume)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", opt.Volume, err)
	}
	if v.Status.Phase != volume.PhaseReady {
		return nil, fmt.Errorf("open volume %s: it is %s: %w", opt.Volume, v.Status.Phase, volume.ErrPrecondition)
	}
	m := &Mirror{
		opt: opt, claim: NewClaim(opt.Volumes, v, opt.Node), direct: v.Spec.Params.CacheMode == volume.CacheNone,
		local: v.ReplicaOn(opt.Node), log: opt.Logger.With("volume", opt.Volume),
		began: time.Now(), served: make(chan struct{}), stopped: make(chan struct{}),
	}
	cfg := core.Config{
		Patience: opt.Patience.Milliseconds(), OpPatience: 8 * opt.Patience.Milliseconds(), Rejoin: opt.Rejoin.Milliseconds(),
		Lease:  readLease.Milliseconds(),
		Reopen: opt.Reopen.Milliseconds(), CopyBytes: opt.CopyBytes,
		RegionBytes: volume.RegionBytes, Settle: opt.Settle.Milliseconds(), Corrections: corrections,
	}
	for _, r := range v.Status.Replicas {
		m.reps = append(m.reps, r)
		cfg.Legs = append(cfg.Legs, core.LegConfig{Local: r.Node == opt.Node})
	}
	if m.core, err = core.New(cfg); err != nil {
		return nil, fmt.Errorf("open volume %s: %w", opt.Volume, err)
	}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.open(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Mirror) open(ctx context.Context) error {
	m.step(func(c *core.Machine) { c.Start() })
	m.spawn(m.tick)
	select {
	case <-m.served:
		m.log.Info("volume opened", "epoch", m.Epoch(), "state", m.String())
		return nil
	case <-m.stopped:
		return fmt.Errorf("open volume %s: %w", m.opt.Volume, m.abandon(ctx, m.stopErr))
	case <-ctx.Done():
		m.step(func(c *core.Machine) { c.Close() })
		select {
		case <-m.stopped:
		case <-time.After(abandonTimeout): // the store is away too
		}
		return fmt.Errorf("open volume %s: %w", m.opt.Volume, m.abandon(ctx, ctx.Err()))
	}
}

// abandonTimeout is how long an opening that has failed still tries to leave
// nothing in the store.
const abandonTimeout = 2 * time.Second

// abandon ends an opening that failed. Nobody has written, so whatever the
// machine did not give back itself is given back as it was found.
func (m *Mirror) abandon(ctx context.Context, err error) error {
	_ = m.Close() // always nil
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	return errors.Join(err, m.claim.Abandon(actx))
}

// step gives the machine one event and carries out what it answers.
func (m *Mirror) step(event func(*core.Machine)) {
	m.lock()
	event(m.core)
	actions := m.takeLocked(nil)
	m.mu.Unlock()
	m.run(actions, nil)
}

// lock is for whoever gives the machine an event: it is told how late it is.
func (m *Mirror) lock() {
	m.mu.Lock()
	m.core.Clock(time.Since(m.began).Milliseconds())
}

// takeLocked takes the machine's actions, and a reference for each sending of a
// request: from here until it is carried out, other events may end the request.
func (m *Mirror) takeLocked(into []core.Action) []core.Action {
	into = m.core.Take(into)
	for i := range into {
		if into[i].Kind == core.Send {
			if r, ok := into[i].Op.User.(*request); ok {
				r.refs.Add(1)
			}
		}
	}
	return into
}

// spawn runs f in a goroutine that end waits for; not at all once it has.
func (m *Mirror) spawn(f func()) { m.tasks.run(f) }

// tick tells the machine the time. Time passes only while this process runs: if
// it was stopped for a while, the replicas must not look silent for as long.
//
// All mirrors of a process tick at the same moments, which wakes it up once and not
// once for each: an idle volume costs next to nothing else.
func (m *Mirror) tick() {
	last, now := time.Now(), time.Duration(0)
	t := time.NewTicker(last.Truncate(m.opt.Tick).Add(m.opt.Tick).Sub(last.Round(0)))
	defer t.Stop()
	aligned := false
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.stopped:
			return
		case at := <-t.C:
			if !aligned {
				t.Reset(m.opt.Tick)
				aligned = true
			}
			now += min(at.Sub(last), 2*m.opt.Tick)
			last = at
			m.step(func(c *core.Machine) { c.Tick(now.Milliseconds()) })
		}
	}
}

// run carries actions out, in order, on a goroutine that must not wait for a
// disk: one that reads a replica's answers, or tells the time. What is to be
// sent to the local replica, which may do its I/O in Submit, is handed to
// another one; only requests that had to wait come to that. With a loop, this is
// its thread.
func (m *Mirror) run(actions []core.Action, loop block.Loop) {
	for i := range actions {
		if actions[i].Kind == core.Send && m.local == actions[i].Leg {
			a := actions[i]
			if m.tasks.run(func() { m.send(&a, nil) }) {
				continue
			}
		}
		m.carryOut(&actions[i], loop)
	}
}

// carryOut carries one action out; with a loop, on its thread.
func (m *Mirror) carryOut(a *core.Action, loop block.Loop) {
	switch a.Kind {
	case core.Send:
		m.send(a, loop)
	case core.Reply:
		reply(a.Op, a.Result, loop)
	default:
		m.control(*a)
	}
}

// control carries out what is not on the data path.
func (m *Mirror) control(a core.Action) {
	switch a.Kind {
	case core.Open:
		m.spawn(func() { m.openReplica(a.Leg, a.Session, a.Size) })
	case core.Drop:
		m.drop(a.Leg, a.Session)
	case core.Swap:
		m.spawn(func() { m.swap(a.Change) })
	case core.AskTurn:
		m.askTurn(a)
	case core.Copy:
		m.spawn(func() { m.copyRange(a) })
	case core.ReadMap:
		m.spawn(func() { m.readMap(a) })
	case core.Rotate, core.DropPrevious, core.DropCopied:
		m.spawn(func() { m.clearIntent(a) })
	case core.Grow:
		m.spawn(func() { m.growReplica(a) })
	case core.GrowDone:
		m.growDone(a)
	case core.Resized:
		m.grewTo(a.Size)
		m.log.Info("volume resized", "sizeBytes", a.Size)
		if m.opt.OnResize != nil {
			m.spawn(func() { m.opt.OnResize(a.Size) })
		}
	case core.Serve:
		m.grewTo(a.Size)
		close(m.served)
	case core.Stop:
		m.stopErr = resultError(a.Result, a.Reason)
		if m.takeErr != nil {
			m.stopErr = m.takeErr
		}
		close(m.stopped)
		if a.Result != core.OK {
			m.log.Error("volume stopped", "reason", a.Reason, "result", a.Result.String())
		}
	}
}

// Volume is the volume that this mirror serves.
func (m *Mirror) Volume() volume.ID { return m.opt.Volume }

// grewTo raises the size; news of two growths may come in either order.
func (m *Mirror) grewTo(size int64) {
	for old := m.size.Load(); old < size && !m.size.CompareAndSwap(old, size); {
		old = m.size.Load()
	}
}

// Size is the bytes served.
func (m *Mirror) Size() int64 { return m.size.Load() }

// Epoch is the epoch that this mirror holds.
func (m *Mirror) Epoch() volume.Epoch { return m.claim.Epoch() }

// Stopped is closed when the mirror serves nothing any more, and Err tells why.
func (m *Mirror) Stopped() <-chan struct{} { return m.stopped }

// Err is why the mirror stopped; nil while it serves, or after a clean close.
func (m *Mirror) Err() error {
	select {
	case <-m.stopped:
		return m.stopErr
	default:
		return nil
	}
}

// String is the machine's state in one line, for logs.
func (m *Mirror) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.String()
}

// Update changes the volume's object in the store under this mirror's epoch;
// ErrFenced when it has been overtaken.
func (m *Mirror) Update(ctx context.Context, apply func(*volume.Volume)) error {
	_, err := m.claim.Update(ctx, apply)
	return err
}

// Observe tells the mirror what a watch saw of its volume, now or some time ago:
// a newer epoch ends it, a larger wanted size makes it grow. Another volume of
// the same name tells nothing: a watch that lags may bring the one before.
func (m *Mirror) Observe(v volume.Volume) {
	switch {
	case v.UID != m.claim.UID:
	case v.Status.Epoch > m.Epoch():
		m.step(func(c *core.Machine) {
			c.Superseded(fmt.Sprintf("the store has epoch %d, this mirror %d", v.Status.Epoch, m.Epoch()))
		})
	case v.Spec.SizeBytes > m.Size() && v.CountState(volume.InSync) == len(v.Status.Replicas):
		m.step(func(c *core.Machine) { c.Grow(v.Spec.SizeBytes) })
	}
}

// Grow makes the volume serve size bytes; it waits for it.
func (m *Mirror) Grow(ctx context.Context, size int64) error {
	done := make(chan error, 1)
	m.growMu.Lock()
	m.growing = append(m.growing, growth{size: size, done: done})
	m.growMu.Unlock()
	m.step(func(c *core.Machine) { c.Grow(size) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopped:
		return errors.Join(volume.ErrClosed, m.stopErr)
	}
}

func (m *Mirror) growDone(a core.Action) {
	var err error
	if a.Result != core.OK {
		err = fmt.Errorf("grow volume %s: %w", m.opt.Volume, resultError(a.Result, a.Reason))
		if a.Result == core.Refused {
			err = fmt.Errorf("grow volume %s: %s: %w", m.opt.Volume, a.Reason, volume.ErrPrecondition)
		}
	}
	m.growMu.Lock()
	defer m.growMu.Unlock()
	m.growing = slices.DeleteFunc(m.growing, func(g growth) bool {
		over := err != nil || g.size <= a.Size
		if over {
			g.done <- err // has room for it
		}
		return over
	})
}

// growth is one caller of Grow.
type growth struct {
	size int64 // bytes
	done chan error
}

// CloseClean answers what is under way, flushes, and releases the volume in the
// store. After an error the volume may still be held; it may be called again.
func (m *Mirror) CloseClean(ctx context.Context) error {
	m.step(func(c *core.Machine) { c.Close() })
	select {
	case <-m.stopped:
	case <-ctx.Done():
		return fmt.Errorf("close volume %s (%s): %w", m.opt.Volume, m, ctx.Err())
	}
	if m.stopErr != nil {
		// Not clean: the next opening has to know.
		if err := m.releaseUnclean(ctx); err != nil {
			return err
		}
	}
	m.end()
	return nil
}

// Close ends the mirror at once, as a crash would: nothing is flushed, and the
// store still names this node as holder.
func (m *Mirror) Close() error {
	m.step(func(c *core.Machine) { c.Abort() })
	<-m.stopped
	m.end()
	return nil
}

// end waits for everything that belongs to the mirror.
func (m *Mirror) end() {
	m.cancel()
	for i := range m.legs {
		if l := m.legs[i].Swap(nil); l != nil {
			l.close()
		}
	}
	m.tasks.wait()
	m.endTurns()
}
