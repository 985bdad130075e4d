package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Delete removes a volume; nil if there is none, also while the replicas on
// nodes that are away still wait for their removal. ErrPrecondition, with the
// node's name, while a live node holds it. A holder whose lease is stale is
// fenced: its epoch is taken from it.
func (c *Controller) Delete(ctx context.Context, id volume.ID) error {
	if id.Validate() != nil {
		return nil // nothing can have such an ID
	}
	for range maxAttempts {
		err := c.deleteOnce(ctx, id)
		if !errors.Is(err, volume.ErrConflict) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("delete volume %s: %w", id, ctx.Err())
		}
	}
	return fmt.Errorf("delete volume %s: others keep changing it: %w", id, volume.ErrPending)
}

func (c *Controller) deleteOnce(ctx context.Context, id volume.ID) error {
	v, err := c.volumes.Get(ctx, id)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("get volume %s: %w", id, err)
	case isTombstone(&v):
		return nil // not a volume, and the reconciler's
	}
	if h := v.Status.Holder; h != nil && !h.Repair && v.Status.Phase == volume.PhaseReady && c.opt.Liveness.Fresh(h.Node) {
		return fmt.Errorf("volume %s is staged on node %s: %w", id, h.Node, volume.ErrPrecondition)
	}
	return c.abandon(ctx, v)
}

// abandon decides that a volume is to go, whatever its phase: the swap to
// PhaseDeleting is the point of no return. ErrConflict when the volume isn't as
// the caller saw it any more.
func (c *Controller) abandon(ctx context.Context, v volume.Volume) error {
	if v.Status.Phase != volume.PhaseDeleting {
		was := v.Status.Phase
		v = v.Clone()
		v.Status.Phase = volume.PhaseDeleting
		v.Status.Epoch++ // fences whoever held the volume
		v.Status.Holder = nil
		marked, err := c.volumes.Update(ctx, v)
		switch {
		case errors.Is(err, volume.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("record volume %s as deleting: %w", v.ID, err)
		}
		c.log.InfoContext(ctx, "volume is being deleted", "volume", v.ID, "uid", v.UID, "was", was, "epoch", v.Status.Epoch, "replicas", nodesOf(&v))
		v = marked
	}
	return c.bury(ctx, v)
}

// tombstoneID is the key of a UID's tombstone. It is no volume's ID, for a
// volume's name can't have a slash.
func tombstoneID(uid volume.UID) volume.ID { return volume.IDFor("deleted/" + string(uid)) }

// isTombstone says whether v is a tombstone under its own key.
func isTombstone(v *volume.Volume) bool {
	return v.Status.Phase == volume.PhaseDeleting && v.ID == tombstoneID(v.UID)
}

// bury moves a volume in PhaseDeleting to its tombstone and removes the replicas
// that can be reached; the reconciler gets the rest. A tombstone that a slow
// controller makes again after it was done with is harmless: the UID stays dead.
func (c *Controller) bury(ctx context.Context, v volume.Volume) error {
	t := v.Clone()
	t.ID, t.Version = tombstoneID(v.UID), 0
	for _, p := range t.Spec.Places { // made, or being made, and not in use yet
		if t.ReplicaOn(p.Node) < 0 {
			t.Status.Replicas = append(t.Status.Replicas, volume.Replica{Node: p.Node, Pool: p.Pool, ID: p.ID, State: volume.Outdated})
		}
	}
	for _, r := range t.Status.Retired {
		if t.ReplicaOn(r.Node) < 0 {
			t.Status.Replicas = append(t.Status.Replicas, volume.Replica{Node: r.Node, Pool: r.Pool, ID: r.ID, State: volume.Outdated})
		}
	}
	t.Spec.Places, t.Status.Retired = nil, nil
	if _, err := c.volumes.Create(ctx, t); err != nil && !errors.Is(err, volume.ErrExists) {
		return fmt.Errorf("record tombstone of volume %s: %w", v.ID, err)
	}
	if err := c.volumes.Delete(ctx, v); err != nil && !errors.Is(err, volume.ErrNotFound) {
		return fmt.Errorf("remove volume %s: %w", v.ID, err)
	}
	if err := c.collect(ctx, t.ID); err != nil {
		c.log.WarnContext(ctx, "replicas of a deleted volume are left for later", "volume", v.ID, "uid", v.UID, "error", err)
	}
	c.wake()
	return nil
}

// collect removes a tombstone's replicas from the nodes that can be reached, and
// from its list. An error tells of those nodes that answered and could not, or
// of the store; replicas on nodes that are away are no error.
func (c *Controller) collect(ctx context.Context, id volume.ID) error {
	t, err := c.volumes.Get(ctx, id)
	if errors.Is(err, volume.ErrNotFound) || err == nil && len(t.Status.Replicas) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get tombstone %s: %w", id, err)
	}
	addrs, err := c.addresses(ctx)
	if err != nil {
		return err
	}
	removed, failed := c.removeReplicas(ctx, &t, addrs)
	if len(removed) == 0 {
		return failed
	}
	gone := func(r volume.Replica) bool { return slices.Contains(removed, r.Node) }
	for range maxAttempts {
		t.Status.Replicas = slices.DeleteFunc(t.Status.Replicas, gone)
		if _, err = c.volumes.Update(ctx, t); !errors.Is(err, volume.ErrConflict) {
			break
		}
		if t, err = c.volumes.Get(ctx, id); err != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, volume.ErrNotFound) {
		return errors.Join(failed, fmt.Errorf("update tombstone %s: %w", id, err))
	}
	c.log.InfoContext(ctx, "replicas removed", "volume", volume.IDFor(t.Spec.Name), "uid", t.UID, "nodes", removed, "left", nodesOf(&t))
	return failed
}

// removeReplicas asks the agents at addrs, all at once.
func (c *Controller) removeReplicas(ctx context.Context, t *volume.Volume, addrs map[volume.NodeID]string) (removed []volume.NodeID, failed error) {
	var g errgroup.Group
	var mu sync.Mutex // guards removed and failed
	for _, r := range t.Status.Replicas {
		addr, ok := addrs[r.Node]
		if !ok {
			continue
		}
		g.Go(func() error {
			err := c.removeReplica(ctx, addr, t)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				removed = append(removed, r.Node)
			} else {
				failed = errors.Join(failed, fmt.Errorf("remove replica from node %s: %w", r.Node, err))
			}
			return nil
		})
	}
	_ = g.Wait() // its functions return nil
	slices.Sort(removed)
	return removed, failed
}

// removeReplica removes one replica of a tombstone's UID: the only place where
// replicas are removed. The tombstone keeps the name, and so the volume's ID.
func (c *Controller) removeReplica(ctx context.Context, addr string, t *volume.Volume) error {
	if !isTombstone(t) {
		return fmt.Errorf("%s is no tombstone: %w", t.ID, volume.ErrPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opt.AgentTimeout)
	defer cancel()
	return c.opt.Agents.DeleteReplica(ctx, addr, volume.IDFor(t.Spec.Name), t.UID)
}

// wake makes the reconciler look soon.
func (c *Controller) wake() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}
