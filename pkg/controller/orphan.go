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

// Orphan is a replica whose UID the store doesn't know: what a lost or restored
// store leaves behind. It is kept, for it may be the only copy of its data.
type Orphan struct {
	Node   volume.NodeID
	Pool   string
	Volume volume.ID
	UID    volume.UID
}

// Orphans returns the orphans that the last sweep found.
func (c *Controller) Orphans() []Orphan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.orphans)
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
func (c *Controller) sweep(ctx context.Context) (swept, error) {
	addrs, err := c.addresses(ctx)
	if err != nil {
		return swept{}, err
	}
	held, complete := c.listAll(ctx, addrs)
	all, err := c.volumes.List(ctx)
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
	var orphans []Orphan
	var errs []error
	for _, o := range held {
		v := byUID[o.UID]
		switch {
		case v == nil:
			orphans = append(orphans, o)
		case isTombstone(v):
			result.late[o.UID] = true
			if err := c.removeReplica(ctx, addrs[o.Node], v); err != nil {
				errs = append(errs, fmt.Errorf("remove replica of %s from node %s: %w", o.UID, o.Node, err))
			}
		}
	}
	c.reportOrphans(ctx, orphans)
	return result, errors.Join(errs...)
}

// listAll asks all nodes at once; complete is false if one did not answer.
func (c *Controller) listAll(ctx context.Context, addrs map[volume.NodeID]string) (held []Orphan, complete bool) {
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
				held = append(held, Orphan{Node: node, Pool: r.Pool, Volume: r.Volume, UID: r.UID})
			}
			return nil
		})
	}
	_ = g.Wait() // its functions return nil
	slices.SortFunc(held, compareOrphans)
	return held, complete
}

// reportOrphans logs those that are new.
func (c *Controller) reportOrphans(ctx context.Context, now []Orphan) {
	c.mu.Lock()
	before := c.orphans
	c.orphans = now
	c.mu.Unlock()
	for _, o := range now {
		if !slices.Contains(before, o) {
			c.log.WarnContext(ctx, "replica of a volume that the store does not know; it is kept",
				"node", o.Node, "pool", o.Pool, "volume", o.Volume, "uid", o.UID)
		}
	}
}

func compareOrphans(a, b Orphan) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.UID, b.UID))
}
