package mirror

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// GrowReplicas makes every in-sync replica at least size bytes, of which the volume
// makes no use yet; ErrUnavailable when one of them is not open. It is the first
// step of growing while other replicas are away: next the mirror is closed with
// CloseKeeping, the store told, and the mirror opened again, which opens whatever
// replica returns later with the new size.
func (m *Mirror) GrowReplicas(ctx context.Context, size int64) error {
	m.mu.Lock()
	var inSync []int
	for i := range m.reps {
		if state, _ := m.core.LegState(i); state == volume.InSync {
			inSync = append(inSync, i)
		}
	}
	m.mu.Unlock()
	for _, i := range inSync {
		err := fmt.Errorf("replica on %s is not open: %w", m.reps[i].Node, volume.ErrUnavailable)
		if l := m.legs[i].Load(); l != nil {
			err = l.dev.Grow(ctx, size)
		}
		if err != nil {
			return fmt.Errorf("grow volume %s: replica on %s: %w", m.opt.Volume, m.reps[i].Node, err)
		}
	}
	return nil
}

// CloseKeeping ends the mirror as CloseClean does, but its node keeps the volume:
// nobody else can take it until this node opens it again. Meanwhile change is
// stored, under the same epoch: the one moment at which the list of replicas may
// change, for no mirror counts on it. change may be called several times, and must
// do nothing the second time.
//
// When ctx ends first the mirror is still draining: it serves nothing any more,
// and the call may be repeated. Any other error says that the volume is lost to
// this node.
func (m *Mirror) CloseKeeping(ctx context.Context, change func(*volume.Volume)) error {
	m.claim.keep.Store(true)
	m.step(func(c *core.Machine) { c.Close() })
	select {
	case <-m.stopped:
	case <-ctx.Done():
		return fmt.Errorf("close volume %s to change its replicas (%s): %w", m.opt.Volume, m, ctx.Err())
	}
	if m.stopErr != nil {
		m.end()
		return fmt.Errorf("close volume %s to change its replicas: %w", m.opt.Volume, m.stopErr)
	}
	for {
		_, err := m.claim.Update(ctx, change)
		if errors.Is(err, volume.ErrUnavailable) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(swapPause):
			}
			continue
		}
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("change the replicas of volume %s: %w", m.opt.Volume, err)
		}
		m.end()
		if err != nil {
			return fmt.Errorf("change the replicas of volume %s: %w", m.opt.Volume, err)
		}
		return nil
	}
}
