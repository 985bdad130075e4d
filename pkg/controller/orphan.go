package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// heldReplica is a replica that a node holds.
type heldReplica struct {
	node   volume.NodeID
	pool   string
	volume volume.ID
	uid    volume.UID
}

// swept is what a look at all nodes found.
type swept struct {
	complete bool                // every node that should have answered has
	late     map[volume.UID]bool // replicas were found although the tombstone lists none there
}

// sweep asks every node what it holds, removes what belongs to a tombstone and
// reports orphans. The nodes are asked before the volumes are listed: a replica
// is made after its volume's object, so none that is whole can look like an
// orphan, unless its tombstone was dropped within that moment.
func (r *reconciler) sweep(ctx context.Context) (swept, error) {
	addrs, err := r.c.addresses(ctx)
	if err != nil {
		return swept{}, err
	}
	held, complete := r.c.listAll(ctx, addrs)
	all, err := r.c.volumes.List(ctx)
	if err != nil {
		return swept{}, fmt.Errorf("list volumes: %w", err)
	}
	byUID := make(map[volume.UID]*volume.Volume, len(all))
	for i := range all {
		if old := byUID[all[i].UID]; old == nil || isTombstone(old) { // a volume comes before its tombstone
			byUID[all[i].UID] = &all[i]
		}
	}
	result := swept{complete: complete, late: map[volume.UID]bool{}}
	var orphans []heldReplica
	var errs []error
	for _, h := range held {
		v := byUID[h.uid]
		switch {
		case v == nil:
			orphans = append(orphans, h)
		case isTombstone(v):
			result.late[h.uid] = true
			if err := r.c.removeReplica(ctx, addrs[h.node], v); err != nil {
				errs = append(errs, fmt.Errorf("remove replica of %s from node %s: %w", h.uid, h.node, err))
			}
		}
	}
	r.reportOrphans(ctx, orphans)
	errs = append(errs, r.trashStrays(ctx, byUID, addrs, held))
	if complete {
		r.noteMissing(all, addrs, held)
	}
	return result, errors.Join(errs...)
}

// trashStrays moves replicas of living volumes that don't list them to the trash
// of their pool: a store that was set back forgets replicas that were added since.
// It takes two sweeps in a row, so that nothing is judged half-done, and a volume
// of which all wanted replicas are in sync, so that it is not the last copy. Not
// even then is it removed.
func (r *reconciler) trashStrays(ctx context.Context, byUID map[volume.UID]*volume.Volume, addrs map[volume.NodeID]string, held []heldReplica) error {
	before := r.strays
	r.strays = map[heldReplica]bool{}
	var errs []error
	for _, h := range held {
		v := byUID[h.uid]
		if v == nil || v.Status.Phase != volume.PhaseReady || listed(v, h.node) {
			continue
		}
		r.strays[h] = true
		if !before[h] || v.CountState(volume.InSync) < v.Spec.WantedReplicas() {
			continue
		}
		err := r.c.retire(ctx, addrs[h.node], RetireReplica{Volume: v.ID, UID: v.UID, Epoch: v.Status.Epoch, Keep: true})
		if err != nil {
			errs = append(errs, fmt.Errorf("move a stray replica of volume %s on node %s to the trash: %w", v.ID, h.node, err))
			continue
		}
		r.c.log.WarnContext(ctx, "a replica that its volume does not list was moved to the pool's trash", "volume", v.ID, "uid", v.UID, "node", h.node, "pool", h.pool)
	}
	return errors.Join(errs...)
}

// noteMissing finds replicas that are behind and that their node does not have:
// nothing can be copied to them, so they are made anew, as others. An in-sync one
// is not judged before somebody has opened the volume and missed it.
func (r *reconciler) noteMissing(all []volume.Volume, addrs map[volume.NodeID]string, held []heldReplica) {
	before := r.missing
	r.missing, r.gone = map[string]bool{}, map[string]bool{}
	for i := range all {
		for _, m := range all[i].Status.Replicas {
			has := func(h heldReplica) bool { return h.node == m.Node && h.uid == all[i].UID }
			if m.ID == "" || addrs[m.Node] == "" || m.State == volume.InSync || all[i].Status.Phase != volume.PhaseReady || slices.ContainsFunc(held, has) {
				continue
			}
			r.missing[m.ID] = true
			r.gone[m.ID] = before[m.ID]
		}
	}
}

// listAll asks all nodes at once; complete is false if one did not answer.
func (c *Controller) listAll(ctx context.Context, addrs map[volume.NodeID]string) (held []heldReplica, complete bool) {
	var g errgroup.Group
	var mu sync.Mutex // guards held and complete
	complete = true
	for node, addr := range addrs {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, c.opt.AgentTimeout)
			defer cancel()
			replicas, err := c.opt.Agents.ListReplicas(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				complete = false
				return nil
			}
			for _, r := range replicas {
				held = append(held, heldReplica{node: node, pool: r.Pool, volume: r.Volume, uid: r.UID})
			}
			return nil
		})
	}
	_ = g.Wait() // its functions return nil
	slices.SortFunc(held, compareHeld)
	return held, complete
}

// reportOrphans logs the orphans that are new: replicas whose UID the store
// doesn't know, which a lost or restored store leaves behind. They are kept, for
// each may be the only copy of its data.
func (r *reconciler) reportOrphans(ctx context.Context, now []heldReplica) {
	for _, o := range now {
		if !slices.Contains(r.orphans, o) {
			r.c.log.WarnContext(ctx, "orphan: replica of a volume that the store does not know; it is kept",
				"node", o.node, "pool", o.pool, "volume", o.volume, "uid", o.uid)
		}
	}
	r.orphans = now
}

func compareHeld(a, b heldReplica) int {
	return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.pool, b.pool), cmp.Compare(a.uid, b.uid))
}
