package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// open opens a mirror, and notes when a replica knows more than the store: then
// the volume is not opened again until an administrator has decided.
func (m *Manager) open(ctx context.Context, v volume.Volume, o mirror.Options) (*mirror.Mirror, error) {
	mir, err := mirror.Open(ctx, o)
	if errors.Is(err, volume.ErrFenced) {
		m.noteBehind(ctx, v, err)
	}
	return mir, err
}

// noteBehind records that a replica refused an epoch though nobody took a higher
// one in the store: the one that was taken is still the store's.
func (m *Manager) noteBehind(ctx context.Context, was volume.Volume, why error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for {
		v, err := m.opt.Store.Volumes().Get(ctx, was.ID)
		if err != nil || v.UID != was.UID || v.Status.Epoch != was.Status.Epoch+1 || v.Status.Holder != nil {
			return // somebody overtook this node; or the next attempt will tell
		}
		v.SetCondition(volume.Condition{
			Type: volume.ConditionFaulty, Status: true, Reason: volume.ReasonStoreBehind, Since: time.Now().UTC(),
			Message: fmt.Sprintf("A replica knows a higher epoch than the store had (%d): the store has gone back in time. "+
				"The volume is not opened until its replicas have been compared with the store: kubectl-holdfast rebuild-store --force. %v", was.Status.Epoch, why),
		})
		_, err = m.opt.Store.Volumes().Update(ctx, v)
		if err == nil {
			m.log.Error("the store is behind a replica; the volume is not opened any more", "volume", v.ID, "epoch", was.Status.Epoch, "error", why)
		}
		if !errors.Is(err, volume.ErrConflict) {
			return
		}
	}
}

// behind is ErrPrecondition for a volume whose store was found to be behind.
func behind(v *volume.Volume) error {
	if c, ok := v.Condition(volume.ConditionFaulty); ok && c.Status && c.Reason == volume.ReasonStoreBehind {
		return fmt.Errorf("volume %s must not be opened: %s: %w", v.ID, c.Message, volume.ErrPrecondition)
	}
	return nil
}
