package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// holderCheck is how often a waiting Expand asks whether the holder still lives,
// which no change of the volume tells.
const holderCheck = time.Second

// Expand makes a volume at least size bytes large (rounded up to
// volume.SizeUnit) and returns it. If a live node holds the volume Expand waits
// until that node serves the new size, or until ctx ends; if nobody does, the
// size is recorded and the next opening grows the replicas. It may be repeated.
//
// A replica that is behind, or away, is grown when it is resynced. ErrNotFound;
// ErrPrecondition when no replica is InSync; and the errors of placement.CheckGrow.
func (c *Controller) Expand(ctx context.Context, id volume.ID, size int64) (volume.Volume, error) {
	if size <= 0 || size > size+volume.SizeUnit {
		return volume.Volume{}, volume.Invalid("size", fmt.Sprint(size), "a positive number of bytes")
	}
	size = (size + volume.SizeUnit - 1) / volume.SizeUnit * volume.SizeUnit
	for range maxAttempts {
		v, err := c.wantSize(ctx, id, size)
		switch {
		case errors.Is(err, volume.ErrConflict):
			continue
		case err != nil:
			return volume.Volume{}, err
		}
		return c.awaitSize(ctx, v, size)
	}
	return volume.Volume{}, fmt.Errorf("expand volume %s: others keep changing it: %w", id, volume.ErrPending)
}

// wantSize records the size wanted, if that isn't done yet.
func (c *Controller) wantSize(ctx context.Context, id volume.ID, size int64) (volume.Volume, error) {
	v, err := c.ready(ctx, id)
	if err != nil {
		return v, err
	}
	if v.Status.SizeBytes >= size {
		return v, nil
	}
	if err := mayGrow(&v); err != nil {
		return v, err
	}
	if v.Spec.SizeBytes >= size {
		return v, nil
	}
	cl, err := c.cluster(ctx)
	if err != nil {
		return v, err
	}
	if err := placement.CheckGrow(cl, v, size); err != nil {
		return v, fmt.Errorf("expand volume %s: %w", id, err)
	}
	was := v.Spec.SizeBytes
	v.Spec.SizeBytes = size
	if v, err = c.volumes.Update(ctx, v); err != nil {
		return v, fmt.Errorf("record the new size of volume %s: %w", id, err)
	}
	c.log.InfoContext(ctx, "volume is to grow", "volume", id, "fromBytes", was, "toBytes", size)
	return v, nil
}

// mayGrow refuses while there is no replica to grow.
func mayGrow(v *volume.Volume) error {
	if v.CountState(volume.InSync) == 0 {
		return fmt.Errorf("expand volume %s: none of its replicas is %s: %w", v.ID, volume.InSync, volume.ErrPrecondition)
	}
	return nil
}

// awaitSize returns once the volume serves the size, or nobody alive holds it.
func (c *Controller) awaitSize(ctx context.Context, v volume.Volume, size int64) (volume.Volume, error) {
	if c.settled(&v, size) {
		return v, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := c.volumes.Watch(ctx, v.ID)
	if err != nil {
		return v, fmt.Errorf("watch volume %s: %w", v.ID, err)
	}
	tick := time.NewTicker(holderCheck)
	defer tick.Stop()
	uid, present := v.UID, false
	for {
		select {
		case <-ctx.Done():
			return volume.Volume{}, waitEnded(&v, size, ctx.Err())
		case <-tick.C:
		case e, open := <-events:
			switch {
			case !open && ctx.Err() == nil:
				return volume.Volume{}, waitEnded(&v, size, volume.ErrUnavailable)
			case !open:
				return volume.Volume{}, waitEnded(&v, size, ctx.Err())
			case e.Kind == store.Deleted, e.Kind == store.Synced && !present, // it went before the watch began
				e.Kind == store.Put && (e.Object.UID != uid || e.Object.Status.Phase != volume.PhaseReady):
				return volume.Volume{}, fmt.Errorf("volume %s was deleted: %w", v.ID, volume.ErrNotFound)
			case e.Kind == store.Put:
				v, present = e.Object, true
			}
		}
		if c.settled(&v, size) {
			return v, nil
		}
		if err := mayGrow(&v); err != nil {
			return volume.Volume{}, err
		}
	}
}

func (c *Controller) settled(v *volume.Volume, size int64) bool {
	return v.Status.SizeBytes >= size || v.Status.Holder == nil || v.Status.Holder.Repair || !c.opt.Liveness.Fresh(v.Status.Holder.Node)
}

func waitEnded(v *volume.Volume, size int64, why error) error {
	holder := volume.NodeID("nobody")
	if h := v.Status.Holder; h != nil {
		holder = h.Node
	}
	return fmt.Errorf("volume %s, held by node %s, has not grown to %d bytes yet: %w", v.ID, holder, size, why)
}
