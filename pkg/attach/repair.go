package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A volume that nobody uses is repaired too: it is opened without an export, and
// closed again when nothing is left to do. The nodes decide that by themselves,
// each by what it sees in the store, so that it needs neither the controller nor
// a message that can be lost: a node with an in-sync replica does it, and if it
// does not, the next one after a while. Two that do it at once are harmless: the
// epoch lets only one, and a repair never overtakes a live holder.
//
// What must be prevented: a repair in somebody's way. The holder is marked as
// repairing, so whoever wants to use the volume takes a higher epoch at once; the
// repair is fenced as any old holder is. Because a repair writes nothing but
// copies to replicas that are not in sync, that is not an unclean end: the in-sync
// replicas are as equal as they were, and Clean stays as it was found.
//
// A holder whose lease is stale may still serve its application, cut off from the
// store only. Whoever needs the volume overtakes it; a repair does so only after a
// long while (Options.HolderGrace).

const (
	// repairTick is how often the volumes are looked at, repairPoll how often one
	// that is being repaired.
	repairTick = time.Second
	repairPoll = 250 * time.Millisecond
	// repairIdle: a repair that gets nowhere for so long makes room for others.
	repairIdle = 30 * time.Second
	// repairClose bounds a clean end.
	repairClose = 5 * time.Second
	// maxRepairDelay bounds the pause after repairs that got nowhere.
	maxRepairDelay = 5 * time.Minute
)

// repair is one volume that is open for repair, or about to be.
type repair struct {
	cancel context.CancelFunc
	mirror atomic.Pointer[mirror.Mirror]
}

// need is since when a volume needs repair that this node could do. It belongs to
// repairAll's goroutine.
type need struct {
	since time.Time
	wait  time.Duration // after since; longer after each repair that got nowhere
}

// saw notes what the watch tells.
func (m *Manager) saw(e store.Event[volume.ID, volume.Volume]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case store.Put:
		m.seen[e.Key] = e.Object
	case store.Deleted:
		delete(m.seen, e.Key)
	case store.Synced:
	}
}

func (m *Manager) lastSeen(id volume.ID) (volume.Volume, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.seen[id]
	return v.Clone(), ok
}

func (m *Manager) repairing(id volume.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.repairs[id] != nil
}

// yield ends this node's own repair of a volume that is to be used here; the
// volume's lock tells when it has ended.
func (m *Manager) yield(id volume.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.repairs[id]; r != nil {
		r.cancel()
	}
}

// repairAll starts repairs until ctx ends, and waits for them.
func (m *Manager) repairAll(ctx context.Context) {
	needs := map[volume.ID]need{}
	results := make(chan repaired, 16) // more than run at once
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(repairTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-results:
			n := needs[r.id]
			n.since, n.wait = time.Now(), min(max(2*n.wait, m.opt.RepairDelay), maxRepairDelay)
			if r.settled {
				delete(needs, r.id)
				continue
			}
			needs[r.id] = n
		case <-tick.C:
			for _, id := range m.dueReshapes() {
				running.Go(func() { m.reshape(ctx, id) })
			}
			for _, v := range m.dueRepairs(needs) {
				rctx, r, ok := m.beginRepair(ctx, v.ID)
				if !ok {
					break
				}
				running.Go(func() {
					settled := m.repair(rctx, v, r)
					m.endRepair(v.ID, r)
					select {
					case results <- repaired{v.ID, settled}:
					case <-ctx.Done():
					}
				})
			}
		}
	}
}

// repaired is how a repair ended.
type repaired struct {
	id      volume.ID
	settled bool
}

// dueRepairs are the volumes that this node should open for repair now, those
// with the fewest in-sync replicas first.
func (m *Manager) dueRepairs(needs map[volume.ID]need) []volume.Volume {
	m.mu.Lock()
	var all []volume.Volume
	for id, v := range m.seen {
		if m.attached[id] == nil && m.repairs[id] == nil {
			all = append(all, v.Clone())
		}
	}
	m.mu.Unlock()
	now := time.Now()
	var due []volume.Volume
	wanted := map[volume.ID]bool{}
	for _, v := range all {
		rank := m.repairRank(&v)
		if rank < 0 {
			continue
		}
		wanted[v.ID] = true
		n, ok := needs[v.ID]
		if !ok {
			n = need{since: now, wait: m.opt.RepairDelay}
			needs[v.ID] = n
		}
		wait := n.wait + time.Duration(rank)*m.opt.RepairDelay
		if h := v.Status.Holder; h != nil && h.Node != m.opt.Node && !h.Repair {
			wait += m.opt.HolderGrace
		}
		if now.Sub(n.since) >= wait {
			due = append(due, v)
		}
	}
	for id := range needs {
		if !wanted[id] && !m.repairing(id) {
			delete(needs, id)
		}
	}
	slices.SortFunc(due, func(a, b volume.Volume) int {
		return cmp.Or(cmp.Compare(a.CountState(volume.InSync), b.CountState(volume.InSync)), cmp.Compare(a.ID, b.ID))
	})
	return due
}

// repairRank is this node's turn in repairing the volume, 0 the first; -1 when
// there is nothing to repair, or not by this node.
func (m *Manager) repairRank(v *volume.Volume) int {
	if v.Status.Phase != volume.PhaseReady || v.LoopOnly() || m.mayRepair(*v) != nil || !m.repairable(v) {
		return -1
	}
	rank := 0
	for _, r := range v.Status.Replicas {
		switch {
		case r.State == volume.InSync && r.Node == m.opt.Node:
			return rank
		case r.State == volume.InSync && m.opt.Liveness.Fresh(r.Node):
			rank++
		}
	}
	return -1
}

// repairable says whether opening the volume would bring it further.
func (m *Manager) repairable(v *volume.Volume) bool {
	c := v.Clone()
	return !v.Status.Clean || v.Status.Holder != nil || c.FollowPlaces(time.Time{}) || m.behindButThere(v)
}

// behindButThere says whether a replica is not in sync whose node is there.
func (m *Manager) behindButThere(v *volume.Volume) bool {
	return slices.ContainsFunc(v.Status.Replicas, func(r volume.Replica) bool {
		return (r.State == volume.Outdated || r.State == volume.Rebuilding) && m.opt.Liveness.Fresh(r.Node)
	})
}

// dueChanges is what is to change in the object of a volume under repair; nil:
// nothing.
func (m *Manager) dueChanges(ctx context.Context, mir *mirror.Mirror, v *volume.Volume) func(*volume.Volume) {
	if v.Status.Epoch != mir.Epoch() || !reshapeDue(v) {
		return nil
	}
	return m.changes(ctx, mir, v)
}

// awaited says whether a replica can be expected to get in sync.
func (m *Manager) awaited(r volume.ServedReplica) bool {
	return r.State != volume.InSync && r.State != volume.Failed && m.opt.Liveness.Fresh(r.Node)
}

// beginRepair reserves one of the few repairs that may run at once.
func (m *Manager) beginRepair(ctx context.Context, id volume.ID) (context.Context, *repair, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.repairs) >= m.opt.MaxRepairs {
		return nil, nil, false
	}
	rctx, cancel := context.WithCancel(ctx)
	r := &repair{cancel: cancel}
	m.repairs[id] = r
	return rctx, r, true
}

func (m *Manager) endRepair(id volume.ID, r *repair) {
	r.cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.repairs, id)
}

// repair opens a volume, waits until nothing is left to do, and closes it. It
// reports whether the volume is settled as far as can be.
func (m *Manager) repair(ctx context.Context, v volume.Volume, r *repair) (settled bool) {
	unlock, err := m.lock(ctx, v.ID)
	if err != nil {
		return false
	}
	defer unlock()
	if m.find(v.ID) != nil {
		return true // somebody was quicker
	}
	o := m.options(v.ID)
	o.Repair, o.MayTake = true, m.mayRepair
	mir, err := m.open(ctx, v, o)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, volume.ErrHeld) {
			m.log.Warn("volume not opened for repair", "volume", v.ID, "error", err)
		}
		return false
	}
	m.log.Info("volume opened for repair", "volume", v.ID, "epoch", mir.Epoch())
	r.mirror.Store(mir)
	settled, err = m.attend(ctx, r, o)
	mir = r.mirror.Swap(nil)
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), repairClose)
	defer cancel()
	if cerr := mir.CloseClean(cctx); cerr != nil {
		_ = mir.Close() // always nil; whoever wants the volume may take it
		err = errors.Join(err, cerr)
	}
	m.log.Info("repair ended", "volume", v.ID, "settled", settled, "error", err)
	return settled
}

// attend waits for a repair, until it is done, gets nowhere, or was overtaken.
func (m *Manager) attend(ctx context.Context, r *repair, o mirror.Options) (settled bool, err error) {
	poll := time.NewTicker(repairPoll)
	defer poll.Stop()
	var last volume.Serving
	moved := time.Now()
	for {
		mir := r.mirror.Load()
		select {
		case <-ctx.Done():
			return false, nil
		case <-mir.Stopped():
			return false, mir.Err()
		case <-poll.C:
		}
		v, ok := m.lastSeen(o.Volume)
		if !ok || v.Status.Epoch < mir.Epoch() {
			continue // the watch is behind, or the volume is gone: then the mirror will find out
		}
		mir.Observe(v)
		if change := m.dueChanges(ctx, mir, &v); change != nil {
			next, err := m.handOver(ctx, mir, handing{change: change, options: o})
			r.mirror.Store(next)
			if err != nil {
				return false, err
			}
			moved = time.Now()
			continue
		}
		now := mir.Serving() // the watch may be behind it
		if now.Dirty == 0 && v.Spec.SizeBytes <= mir.Size() && !slices.ContainsFunc(now.Replicas, m.awaited) {
			return true, nil
		}
		if now.Dirty != last.Dirty || !slices.Equal(now.Replicas, last.Replicas) {
			last, moved = now, time.Now()
		}
		if time.Since(moved) > repairIdle {
			return false, fmt.Errorf("nothing has changed for %v: %w", repairIdle, volume.ErrUnavailable)
		}
	}
}
