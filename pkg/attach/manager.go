// Package attach makes volumes usable on this node, and unusable again: it waits
// until nobody alive holds the volume, takes its epoch, opens the mirror (or, for
// a single local replica, claims its image) and exports a block device; in
// reverse it closes the export, flushes and releases. It is not concerned with
// filesystems and mounts: that is package csi.
//
// What must be prevented: two nodes that serve one volume. A live holder (its
// lease in the store is fresh) is waited for, never overtaken. A dead one is
// overtaken by a new epoch, which the replicas then insist on; whether the holder
// was really dead decides about availability only, not about the data.
//
// Concurrency: one operation per volume at a time (Manager.lock); Manager.mu
// guards the table and is never held across I/O. Run's goroutine feeds what it
// sees in the store to the mirrors.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/pace"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Local is what the manager needs of this node's replicas; replica.Server has it.
type Local interface {
	ClaimLoop(ctx context.Context, o replica.OpenOptions) (path string, release func(), err error)
	Grow(ctx context.Context, uid volume.UID, epoch volume.Epoch, session volume.Session, size int64) error
}

// Liveness says whether a node's lease is fresh; store.Liveness has it.
type Liveness interface {
	Fresh(node volume.NodeID) bool
}

// Options for New.
type Options struct {
	Node     volume.NodeID
	StateDir string // exports are mounted below it
	Store    store.Store
	Liveness Liveness
	Replicas mirror.Replicas // opens sessions, local and remote
	Local    Local
	// Choose says how volumes are exported on this host; export.Report.For has it.
	Choose func(volume.Params) export.Choice
	// Self returns this node's object as last registered.
	Self   func() volume.Node
	Logger *slog.Logger
	// LegTimeout is the mirror's patience.
	LegTimeout time.Duration
	// RejoinTimeout is how long a replica that was lost may take to come back.
	RejoinTimeout time.Duration
	// HolderPoll is how often a wait for the holder looks at its lease again;
	// default 500 ms. Its release is seen at once, by watch.
	HolderPoll time.Duration
	// RepairDelay is for how long a volume must need repair, with nobody using it,
	// until this node opens it for that; default 10 s. The nodes of its in-sync
	// replicas take turns: the second waits twice as long, and so on.
	RepairDelay time.Duration
	// HolderGrace is for how long, besides, a holder whose lease is stale is left
	// alone by repairs; default 10 min.
	HolderGrace time.Duration
	// MaxRepairs is how many volumes are open for repair at once; default 2.
	MaxRepairs int
	// Pace gives the resyncs of this node's volumes their turns; default: at most two
	// volumes at once, as fast as applications bear.
	Pace *pace.Scheduler
	// Keep stores a copy of a volume's object beside its local replica; nil: none
	// are kept. replica.Server has it.
	Keep func(volume.Volume) error
}

// Manager attaches volumes to this node.
type Manager struct {
	opt Options
	log *slog.Logger

	mu       sync.Mutex
	attached map[volume.ID]*attachment // Guarded by mu.
	busy     map[volume.ID]chan struct{}
	synced   bool // Run has seen the store's state
	// seen is every volume as the watch last told. Guarded by mu.
	seen map[volume.ID]volume.Volume
	// repairs are the volumes open for repair, or about to be. Guarded by mu.
	repairs map[volume.ID]*repair
	// reshaping are the attached volumes whose mirror is being replaced. Guarded by mu.
	reshaping map[volume.ID]bool
}

// attachment is one attached volume.
type attachment struct {
	v      volume.Volume // as it was when attached; identity and parameters only
	under  *underlay     // nil for a loop-only volume
	loop   *loopOnly     // nil for a mirrored one
	export export.Export
}

// New makes a manager; Run must be running for volumes to grow.
func New(opt Options) *Manager {
	if opt.HolderPoll <= 0 {
		opt.HolderPoll = 500 * time.Millisecond
	}
	if opt.RepairDelay <= 0 {
		opt.RepairDelay = 10 * time.Second
	}
	if opt.HolderGrace <= 0 {
		opt.HolderGrace = 10 * time.Minute
	}
	if opt.MaxRepairs <= 0 {
		opt.MaxRepairs = 2
	}
	if opt.Pace == nil {
		opt.Pace = pace.New(pace.Options{})
	}
	return &Manager{
		opt: opt, log: opt.Logger, attached: map[volume.ID]*attachment{}, busy: map[volume.ID]chan struct{}{},
		seen: map[volume.ID]volume.Volume{}, repairs: map[volume.ID]*repair{}, reshaping: map[volume.ID]bool{},
	}
}

// exportDir is the private directory of a volume's export.
func (m *Manager) exportDir(id volume.ID) string {
	return filepath.Join(m.opt.StateDir, "exports", string(id))
}

// Run first removes what a dead process left of this node's exports and adopts
// the loop devices that outlived it, then feeds what it sees in the store to the
// mirrors until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	root := filepath.Join(m.opt.StateDir, "exports")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("exports: %w", err)
	}
	if err := export.Sweep(ctx, root, m.log); err != nil {
		return fmt.Errorf("sweep %s: %w", root, err)
	}
	events, err := m.opt.Store.Volumes().Watch(ctx, "")
	if err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	copies := newCopier(m.opt.Keep, m.log)
	tasks.Go(func() { copies.run(ctx) })
	tasks.Go(func() { m.repairAll(ctx) })
	for e := range events {
		m.saw(e)
		switch e.Kind {
		case store.Synced:
			m.mu.Lock()
			m.synced = true
			m.mu.Unlock()
		case store.Put:
			if e.Object.ReplicaOn(m.opt.Node) >= 0 && e.Object.Status.Phase == volume.PhaseReady {
				copies.keep(e.Object)
			}
			if a := m.find(e.Key); a != nil {
				m.observe(ctx, &tasks, a, e.Object)
			} else if !m.isSynced() && m.orphaned(e.Object) { // later ones may be this process's own, released since
				tasks.Go(func() { m.adopt(ctx, e.Key) })
			}
		}
	}
	return ctx.Err()
}

// observe tells an attachment what its volume looks like now.
func (m *Manager) observe(ctx context.Context, tasks *sync.WaitGroup, a *attachment, v volume.Volume) {
	if a.under != nil {
		mir, _ := a.under.mirror()
		mir.Observe(v)
		return
	}
	if v.Spec.SizeBytes > v.Status.SizeBytes {
		tasks.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			if err := a.loop.grow(ctx, v.Spec.SizeBytes); err != nil {
				m.log.Warn("volume not grown", "volume", v.ID, "error", err)
			}
		})
	}
}

func (m *Manager) isSynced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced
}

func (m *Manager) find(id volume.ID) *attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attached[id]
}

// lock waits until no other operation on the volume runs.
func (m *Manager) lock(ctx context.Context, id volume.ID) (unlock func(), err error) {
	for {
		m.mu.Lock()
		ch, taken := m.busy[id]
		if !taken {
			ch = make(chan struct{})
			m.busy[id] = ch
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, id)
				m.mu.Unlock()
				close(ch)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, fmt.Errorf("volume %s: %w: %w", id, volume.ErrPending, ctx.Err())
		}
	}
}

// Attach makes the volume's block device on this node. It is idempotent, waits
// for a live holder to release until shortly before ctx's deadline, and leaves
// nothing behind on error.
func (m *Manager) Attach(ctx context.Context, id volume.ID) (Attachment, error) {
	m.yield(id)
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	if a := m.find(id); a != nil {
		if a.alive() {
			return a.describe(), nil
		}
		m.log.Warn("attachment is dead; making it anew", "volume", id, "error", a.why())
		if err := m.detach(ctx, id, a); err != nil {
			return Attachment{}, err
		}
	}
	v, err := m.waitForHolder(ctx, id)
	if err != nil {
		return Attachment{}, err
	}
	a, err := m.export(ctx, v)
	if err != nil {
		return Attachment{}, err
	}
	m.register(ctx, id, a)
	m.log.Info("volume attached", "volume", id, "device", a.export.Device(), "export", a.export.Kind())
	return a.describe(), nil
}

// register puts an attachment into the table, and tells it what the watch saw before
// the table had it: a size wanted since. Only from here on a growth finds the export
// that it has to resize.
func (m *Manager) register(ctx context.Context, id volume.ID, a *attachment) {
	m.mu.Lock()
	m.attached[id] = a
	m.mu.Unlock()
	now, err := m.opt.Store.Volumes().Get(ctx, id)
	if err == nil && a.under != nil {
		mir, _ := a.under.mirror()
		mir.Observe(now)
		return
	}
	if err == nil && now.Spec.SizeBytes > now.Status.SizeBytes {
		err = a.loop.grow(ctx, now.Spec.SizeBytes)
	}
	if err != nil {
		m.log.Warn("volume not grown", "volume", id, "error", err)
	}
}

// export opens the volume and makes its device, in the way that probing chose.
func (m *Manager) export(ctx context.Context, v volume.Volume) (*attachment, error) {
	switch c := m.opt.Choose(v.Spec.Params); c.Kind {
	case export.KindLoop:
		return m.attachLoop(ctx, v)
	case export.KindFUSE:
		return m.attachMirror(ctx, v)
	default:
		return nil, fmt.Errorf("volume %s can't be exported on node %s: %s: %w", v.ID, m.opt.Node, c.Why, volume.ErrUnsupported)
	}
}

// mayTake says whether the volume's holder may be overtaken by this node, to use
// the volume. One that only repairs may be at any time.
func (m *Manager) mayTake(v volume.Volume) error {
	if h := v.Status.Holder; h != nil && h.Repair {
		return behind(&v)
	}
	return m.mayRepair(v)
}

// mayRepair is mayTake for a repair.
func (m *Manager) mayRepair(v volume.Volume) error {
	h := v.Status.Holder
	if h == nil || h.Node == m.opt.Node || !m.opt.Liveness.Fresh(h.Node) {
		return behind(&v)
	}
	return fmt.Errorf("volume %s is held by node %s since %s: %w", v.ID, h.Node, h.Since.Format(time.RFC3339), volume.ErrHeld)
}

func (m *Manager) attachMirror(ctx context.Context, v volume.Volume) (*attachment, error) {
	a := &attachment{v: v}
	mir, err := m.open(ctx, v, m.options(v.ID))
	if err != nil {
		return nil, err
	}
	if mir, err = m.growBeforeExport(ctx, mir); err != nil {
		return nil, errors.Join(err, mir.Close()) // it has ended already, or ends as a crash would
	}
	a.under = newUnderlay(mir)
	opt := export.FUSEOptions{Dir: m.exportDir(v.ID), Volume: v.ID, Device: a.under, Logger: m.log}
	a.export, err = export.OpenFUSE(ctx, opt)
	if err != nil {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("export volume %s: %w", v.ID, err), mir.CloseClean(cctx))
	}
	return a, nil
}

// options are how an attached volume's mirror is opened.
func (m *Manager) options(id volume.ID) mirror.Options {
	return mirror.Options{
		Volume: id, Node: m.opt.Node, Volumes: m.opt.Store.Volumes(), Replicas: m.opt.Replicas, Logger: m.log,
		MayTake: m.mayTake, Patience: m.opt.LegTimeout, Rejoin: m.opt.RejoinTimeout, Pace: m.opt.Pace,
		OnResize: func(int64) { m.resized(id) },
	}
}

// growBeforeExport lets a volume that was expanded while nobody held it begin
// with its new size, so that staging finds a device that is large enough for the
// filesystem to grow. It returns the mirror to go on with.
func (m *Manager) growBeforeExport(ctx context.Context, mir *mirror.Mirror) (*mirror.Mirror, error) {
	v, err := m.opt.Store.Volumes().Get(ctx, mir.Volume())
	switch {
	case err != nil || v.Spec.SizeBytes <= mir.Size():
	case growsShort(&v):
		if change := m.changes(ctx, mir, &v); change != nil {
			return m.handOver(ctx, mir, handing{change: change, options: m.options(v.ID)})
		}
	default:
		err = mir.Grow(ctx, v.Spec.SizeBytes)
	}
	if err != nil {
		m.log.Info("volume begins with its old size", "volume", mir.Volume(), "error", err)
	}
	return mir, nil
}

// resized brings the export to the mirror's size.
func (m *Manager) resized(id volume.ID) {
	a := m.find(id)
	if a == nil {
		return // not exported yet: the export will have the size
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.export.Resize(ctx, a.size()); err != nil {
		m.log.Warn("export not resized", "volume", id, "error", err)
	}
}

// Detach closes the export, flushes, and releases the volume. It is idempotent.
func (m *Manager) Detach(ctx context.Context, id volume.ID) error {
	if m.repairing(id) {
		return nil // so it is not attached
	}
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	a := m.find(id)
	if a == nil {
		return m.releaseStale(ctx, id)
	}
	return m.detach(ctx, id, a)
}

func (m *Manager) detach(ctx context.Context, id volume.ID, a *attachment) error {
	if err := a.export.Close(ctx); err != nil {
		return fmt.Errorf("detach volume %s: %w", id, err)
	}
	var err error
	if a.under != nil {
		mir, _ := a.under.mirror()
		err = mir.CloseClean(ctx)
	} else {
		err = a.loop.close(ctx)
	}
	if err != nil {
		return fmt.Errorf("detach volume %s: %w", id, err)
	}
	m.mu.Lock()
	delete(m.attached, id)
	m.mu.Unlock()
	m.log.Info("volume detached", "volume", id)
	return nil
}

// releaseStale gives back what an earlier process of this node still holds in
// the store, and removes its loop device. The volume stays unclean.
func (m *Manager) releaseStale(ctx context.Context, id volume.ID) error {
	v, err := m.opt.Store.Volumes().Get(ctx, id)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	if h := v.Status.Holder; h == nil || h.Node != m.opt.Node {
		return nil
	}
	if v.LoopOnly() {
		a, err := m.attachLoop(ctx, v) // adopts the device that is there
		if err != nil {
			return err
		}
		return m.detach(ctx, id, a)
	}
	claim := mirror.NewClaim(m.opt.Store.Volumes(), v, m.opt.Node)
	if _, _, err := claim.Take(ctx, m.mayTake); err != nil {
		return err
	}
	return claim.Release(ctx, func(v *volume.Volume) { v.Status.Clean = false })
}

// Shutdown ends every attachment: in order where the device is free, else as a
// crash would. It reports what was still in use.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	ids := make([]volume.ID, 0, len(m.attached))
	for id := range m.attached {
		ids = append(ids, id)
	}
	m.mu.Unlock()
	var errs []error
	for _, id := range ids {
		dctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := m.Detach(dctx, id); err != nil {
			errs = append(errs, err)
			if a := m.find(id); a != nil && a.under != nil {
				mir, _ := a.under.mirror()
				_ = mir.Close() // always nil: it ends as a crash would
			}
		}
		cancel()
	}
	return errors.Join(errs...)
}
