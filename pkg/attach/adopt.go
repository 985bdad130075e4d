package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// adopt takes charge again of a loop-only volume that an earlier process of this
// node attached. The kernel has served it all the time, and nobody stages it
// anew; but without an attachment it could not grow, and nobody would know its
// health.
func (m *Manager) adopt(ctx context.Context, id volume.ID) {
	for {
		err := m.tryAdopt(ctx, id)
		if err == nil || ctx.Err() != nil {
			return
		}
		m.log.Warn("loop device of an earlier process not adopted", "volume", id, "error", err)
		if !errors.Is(err, volume.ErrUnavailable) {
			return // staging or unstaging it will say why
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(m.opt.HolderPoll):
		}
	}
}

func (m *Manager) tryAdopt(ctx context.Context, id volume.ID) error {
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if m.find(id) != nil {
		return nil // somebody was quicker
	}
	v, err := m.opt.Store.Volumes().Get(ctx, id)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("adopt volume %s: %w", id, err)
	case !m.orphaned(v):
		return nil // released meanwhile
	}
	a, err := m.attachLoop(ctx, v)
	if err != nil {
		return fmt.Errorf("adopt volume %s: %w", id, err)
	}
	m.register(ctx, id, a)
	m.log.Info("loop device of an earlier process adopted", "volume", id, "device", a.export.Device())
	return nil
}

// orphaned says whether the volume is held by this node and served by the kernel
// alone.
func (m *Manager) orphaned(v volume.Volume) bool {
	h := v.Status.Holder
	return v.Status.Phase == volume.PhaseReady && v.LoopOnly() && h != nil && h.Node == m.opt.Node
}
