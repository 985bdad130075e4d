package replica

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Grow makes a replica at least size bytes large; it never shrinks one. epoch
// and session must be those that are open.
//
// The wanted size is recorded before the image is changed, and as the size
// after: a crash leaves the old size, or a growth that the next opening
// finishes, and an image of any third size is known to be damaged.
//
// Errors: ErrOutOfRange (size), ErrNotFound, ErrFenced, ErrNoSpace, ErrPending,
// ErrFailed.
func (s *Server) Grow(ctx context.Context, uid volume.UID, epoch volume.Epoch, session volume.Session, size int64) error {
	if err := checkSize(size); err != nil {
		return fmt.Errorf("grow replica %s: %w", uid, err)
	}
	r, err := s.lookup(uid)
	if err != nil {
		return err
	}
	if err := take(ctx, r.turn); err != nil {
		return err
	}
	defer func() { <-r.turn }()
	if err := r.usable(); err != nil {
		return err
	}
	live, err := r.holding(epoch, session)
	if err != nil {
		return err
	}
	if err := r.grow(size); err != nil {
		return fmt.Errorf("grow replica %s: %w", uid, err)
	}
	if live != nil {
		size := r.snapshot().SizeBytes
		if err := live.growRegions(size); err != nil {
			return fmt.Errorf("grow replica %s: %w", uid, err)
		}
		live.size.Store(size)
	}
	return nil
}

// holding checks that (epoch, session) is what is open; the Session is nil when
// that is a loop export's claim.
func (r *replica) holding(epoch volume.Epoch, session volume.Session) (*Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.meta.Epoch == epoch && r.meta.Session == session {
		if r.live != nil && r.live.name.Epoch == epoch && r.live.name.Session == session && !r.live.gate.isShut() {
			return r.live, nil
		}
		if r.claim != nil {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("replica %s: epoch %d session %d is not open, the last one seen is %d/%d: %w",
		r.uid, epoch, session, r.meta.Epoch, r.meta.Session, volume.ErrFenced)
}

func (r *replica) grow(size int64) error {
	if err := r.finishGrowth(); err != nil {
		return err
	}
	old := r.snapshot()
	if size <= old.SizeBytes {
		return nil
	}
	if err := r.pool.Claim(r.uid, r.poolClaim(size)); err != nil {
		return err
	}
	if err := r.update(func(m *meta) { m.GrowToBytes = size }); err != nil {
		return err // the claim stays: the growth may be on disk
	}
	if err := r.finishGrowth(); err != nil {
		return err
	}
	r.log.Info("grew a replica", "fromBytes", old.SizeBytes, "sizeBytes", size)
	return nil
}

// finishGrowth does what growToBytes says, if anything. Repeating it is harmless.
func (r *replica) finishGrowth() error {
	m := r.snapshot()
	if m.GrowToBytes == 0 {
		return nil
	}
	f, err := r.pool.FS().Edit(r.imagePath())
	if err != nil {
		return err
	}
	if err := errors.Join(resize(f, m.GrowToBytes), f.Close()); err != nil {
		return diskError(err)
	}
	return r.update(func(m *meta) { m.SizeBytes, m.GrowToBytes = max(m.SizeBytes, m.GrowToBytes), 0 })
}
