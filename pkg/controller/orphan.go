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
	return result, errors.Join(errs...)
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
