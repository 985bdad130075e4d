package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// holderMargin is how long before its caller's deadline a wait for the holder
// ends, so that the caller still gets the answer that names it.
const holderMargin = 3 * time.Second

// waitForHolder waits until the volume may be taken: released, held by this node
// itself, or its holder's lease has run out. Whoever waits without a deadline
// gets one minute.
func (m *Manager) waitForHolder(ctx context.Context, id volume.ID) (volume.Volume, error) {
	wait := time.Minute
	if d, ok := ctx.Deadline(); ok {
		wait = time.Until(d)
		wait -= min(holderMargin, wait/3)
	}
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	v, err := m.opt.Store.Volumes().Get(ctx, id)
	if err != nil {
		return v, err
	}
	if v.Status.Phase != volume.PhaseReady {
		return v, fmt.Errorf("volume %s is %s: %w", id, v.Status.Phase, volume.ErrPrecondition)
	}
	held := m.mayTake(v)
	if !errors.Is(held, volume.ErrHeld) {
		return v, held
	}
	m.log.Info("waiting for the volume's holder", "volume", id, "node", v.Status.Holder.Node, "wait", wait.Round(time.Millisecond))
	events, err := m.opt.Store.Volumes().Watch(wctx, id)
	if err != nil {
		return v, err
	}
	poll := time.NewTicker(m.opt.HolderPoll)
	defer poll.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return v, held
			}
			if e.Kind == store.Deleted {
				return v, fmt.Errorf("volume %s was deleted: %w", id, volume.ErrNotFound)
			}
			if e.Kind == store.Put {
				v = e.Object
			}
		case <-poll.C:
		case <-wctx.Done():
			return v, held
		}
		if held = m.mayTake(v); !errors.Is(held, volume.ErrHeld) {
			return v, held
		}
	}
}
