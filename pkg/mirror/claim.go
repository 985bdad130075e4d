package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Claim is a node's hold on one volume in the store: an epoch and a nonce.
// Mirror has one; a volume that needs no mirror (a single local replica under a
// loop device) is held by a Claim alone.
//
// A Claim's methods are called one at a time, except that UID and Epoch never
// change after Take.
type Claim struct {
	Volumes Volumes
	Volume  volume.ID
	UID     volume.UID
	Node    volume.NodeID
	// Repair: nobody uses the volume; see volume.Holder. Set before Take.
	Repair bool

	keep  atomic.Bool // the end of the mirror is not the end of the hold; see CloseKeeping
	nonce string
	epoch volume.Epoch

	// Of the last attempt to take the volume: the version that it was made on, 0
	// before the first, and whether the volume was clean then.
	triedOn  int64
	wasClean bool
}

// NewClaim prepares a claim on v for the node; nothing is taken yet.
func NewClaim(volumes Volumes, v volume.Volume, node volume.NodeID) *Claim {
	return &Claim{Volumes: volumes, Volume: v.ID, UID: v.UID, Node: node, nonce: uuid.NewString()}
}

// Nonce is what this claim is known by, in the store and at the replicas.
func (c *Claim) Nonce() string { return c.nonce }

// Epoch is the epoch that Take took.
func (c *Claim) Epoch() volume.Epoch { return c.epoch }

// Take takes the volume's next epoch with this node as holder, marks it unclean,
// and returns the volume after and before. mayTake is asked with the very
// version that is swapped. An answer that was lost is recognised by the nonce:
// the same swap on the same version can land only once.
func (c *Claim) Take(ctx context.Context, mayTake func(volume.Volume) error) (now, was volume.Volume, err error) {
	for {
		v, err := c.Volumes.Get(ctx, c.Volume)
		if err != nil {
			return v, was, err
		}
		if h := v.Status.Holder; h != nil && h.Nonce == c.nonce {
			c.epoch = v.Status.Epoch
			return v, was, nil
		}
		if err := c.check(&v, mayTake); err != nil {
			return v, was, err
		}
		was = v.Clone()
		c.triedOn, c.wasClean = v.Version, v.Status.Clean
		at := time.Now().UTC()
		v.Status.Epoch++
		v.Status.Holder = &volume.Holder{Node: c.Node, Nonce: c.nonce, Since: at, Repair: c.Repair}
		// A repair writes nothing but copies to replicas that are not in sync, so
		// those that are stay as equal as they were.
		v.Status.Clean = v.Status.Clean && c.Repair
		_, had := v.Condition(volume.ConditionFaulty)
		if _, lost := v.LostData(); had && !lost { // that it can be opened doesn't bring lost data back
			v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Reason: "Opened", Message: "the volume was opened again", Since: at})
		}
		v, err = c.Volumes.Update(ctx, v)
		switch {
		case err == nil:
			c.epoch = v.Status.Epoch
			return v, was, nil
		case !errors.Is(err, volume.ErrConflict) && !errors.Is(err, volume.ErrUnavailable):
			return v, was, err
		case ctx.Err() != nil:
			return v, was, fmt.Errorf("take volume %s: %w", c.Volume, err)
		}
	}
}

func (c *Claim) check(v *volume.Volume, mayTake func(volume.Volume) error) error {
	if v.UID != c.UID {
		return fmt.Errorf("volume %s was created anew: %w", v.ID, volume.ErrConflict)
	}
	if v.Status.Phase != volume.PhaseReady {
		return fmt.Errorf("volume %s is %s: %w", v.ID, v.Status.Phase, volume.ErrPrecondition)
	}
	return mayTake(*v)
}

// Update re-reads, checks that this claim still holds the volume, applies and
// swaps, until it succeeds or can't: ErrFenced when the claim was overtaken,
// ErrNotFound, or ErrUnavailable when the swap may still land.
func (c *Claim) Update(ctx context.Context, apply func(*volume.Volume)) (volume.Volume, error) {
	for {
		v, err := c.Volumes.Get(ctx, c.Volume)
		if err != nil {
			return v, err
		}
		if err := c.holds(&v); err != nil {
			return v, err
		}
		apply(&v)
		v, err = c.Volumes.Update(ctx, v)
		if !errors.Is(err, volume.ErrConflict) {
			return v, err
		}
		if ctx.Err() != nil {
			return v, fmt.Errorf("%w: %w", volume.ErrUnavailable, ctx.Err())
		}
	}
}

// Abandon gives back what Take took, or may have taken without an answer, when
// nothing was written since: the volume is as clean as it was found. It tries
// until ctx ends. A take that may still land is settled by a successful swap on
// the version that it was made on, if need be one that changes nothing.
func (c *Claim) Abandon(ctx context.Context) error {
	for c.triedOn != 0 {
		v, err := c.Volumes.Get(ctx, c.Volume)
		if err == nil {
			mine := v.Status.Holder != nil && v.Status.Holder.Nonce == c.nonce
			switch {
			case mine:
				v.Status.Holder, v.Status.Clean = nil, c.wasClean
			case v.Version != c.triedOn:
				return nil // released already, or never taken
			}
			_, err = c.Volumes.Update(ctx, v)
		}
		switch {
		case err == nil, errors.Is(err, volume.ErrNotFound):
			return nil
		case errors.Is(err, volume.ErrConflict) && ctx.Err() == nil:
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("give volume %s back: %w", c.Volume, err)
		case <-time.After(swapPause):
		}
	}
	return nil
}

// Release gives the volume back, trying until ctx ends. That it was overtaken, is
// gone, or was released already is as good.
func (c *Claim) Release(ctx context.Context, apply func(*volume.Volume)) error {
	for {
		_, err := c.Update(ctx, func(v *volume.Volume) {
			v.Status.Holder = nil
			apply(v)
		})
		switch {
		case err == nil, errors.Is(err, volume.ErrFenced), errors.Is(err, volume.ErrNotFound):
			return nil
		case !errors.Is(err, volume.ErrUnavailable):
			return fmt.Errorf("release volume %s: %w", c.Volume, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("release volume %s: %w", c.Volume, err)
		case <-time.After(swapPause):
		}
	}
}

// holds says whether the volume is still this claim's.
func (c *Claim) holds(v *volume.Volume) error {
	switch h := v.Status.Holder; {
	case v.UID != c.UID:
		return fmt.Errorf("volume %s was created anew: %w", v.ID, volume.ErrFenced)
	case v.Status.Epoch != c.epoch:
		return fmt.Errorf("volume %s has epoch %d, this holder %d: %w", v.ID, v.Status.Epoch, c.epoch, volume.ErrFenced)
	case h == nil || h.Nonce != c.nonce:
		return fmt.Errorf("volume %s is not held by this holder: %w", v.ID, volume.ErrFenced)
	}
	return nil
}
