package controller

import (
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// SetReplicas changes how many replicas a volume is to have, 1 to 5. It answers
// when that is recorded; the replicas follow in the background, also while the
// volume is in use. ErrNotFound, ErrInvalid; ErrPrecondition for a volume that
// can't have another number.
func (c *Controller) SetReplicas(ctx context.Context, id volume.ID, n int) (volume.Volume, error) {
	v, err := c.change(ctx, id, "", func(v *volume.Volume) error { return WantReplicas(v, n) })
	if err != nil {
		return v, fmt.Errorf("change the replicas of volume %s: %w", id, err)
	}
	c.wake()
	return v, nil
}

// WantReplicas records the number in the object, or says why it can't be.
func WantReplicas(v *volume.Volume, n int) error {
	switch p := v.Spec.Params; {
	case n < 1 || n > volume.MaxReplicas:
		return volume.Invalid("replicas", fmt.Sprint(n), fmt.Sprintf("a whole number from 1 to %d", volume.MaxReplicas))
	case n == v.Spec.WantedReplicas():
		return nil
	case p.LoopOnly():
		return fmt.Errorf("it was made for a single local replica, which the kernel serves without a mirror: %w", volume.ErrPrecondition)
	case p.Locality == volume.LocalityStrict && n > v.Spec.WantedReplicas():
		return fmt.Errorf("it is bound to the nodes that it was created on (locality strict): %w", volume.ErrPrecondition)
	}
	v.Spec.Replicas = n
	return nil
}
