package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// loopOnly is a volume that is one local replica under a loop device: the kernel
// alone serves it, also while this process is away.
type loopOnly struct {
	claim   *mirror.Claim
	local   Local
	export  export.Export
	release func() // the replica's image

	mu    sync.Mutex
	bytes int64 // served. Guarded by mu.
	growM sync.Mutex
}

// loopSession is the only session of a loop-only volume's epoch.
const loopSession volume.Session = 1

// attachLoop takes the volume's epoch, claims the image under it and puts a loop
// device on it, or adopts the one that an earlier process of this node made.
func (m *Manager) attachLoop(ctx context.Context, v volume.Volume) (*attachment, error) {
	if v.ReplicaOn(m.opt.Node) < 0 {
		return nil, fmt.Errorf("volume %s has its only replica on node %s and is bound to it (locality strict): %w",
			v.ID, v.Status.Replicas[0].Node, volume.ErrPrecondition)
	}
	claim := mirror.NewClaim(m.opt.Store.Volumes(), v, m.opt.Node)
	l := &loopOnly{claim: claim, local: m.opt.Local}
	undo := func(err error) error {
		if l.release != nil {
			l.release()
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(err, claim.Abandon(cctx))
	}
	now, _, err := claim.Take(ctx, m.mayTake)
	if err != nil {
		return nil, undo(fmt.Errorf("open volume %s: %w", v.ID, err))
	}
	l.bytes = now.Status.SizeBytes
	path, release, err := m.opt.Local.ClaimLoop(ctx, replica.OpenOptions{
		Volume: v.ID, UID: v.UID, Epoch: claim.Epoch(), Session: loopSession, Holder: m.opt.Node, Nonce: claim.Nonce(),
	})
	if err != nil {
		return nil, undo(fmt.Errorf("open volume %s: %w", v.ID, err))
	}
	l.release = release
	l.export, err = export.OpenLoop(ctx, export.LoopOptions{Path: path, Logger: m.log})
	if err != nil {
		return nil, undo(fmt.Errorf("export volume %s: %w", v.ID, err))
	}
	a := &attachment{v: v, loop: l, export: l.export}
	if now.Spec.SizeBytes > now.Status.SizeBytes {
		if err := l.grow(ctx, now.Spec.SizeBytes); err != nil {
			m.log.Warn("volume not grown", "volume", v.ID, "error", err)
		}
	}
	return a, nil
}

func (l *loopOnly) size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// grow makes the image larger, then the store, then the device.
func (l *loopOnly) grow(ctx context.Context, size int64) error {
	l.growM.Lock()
	defer l.growM.Unlock()
	if size <= l.size() {
		return nil
	}
	if err := l.local.Grow(ctx, l.claim.UID, l.claim.Epoch(), loopSession, size); err != nil {
		return fmt.Errorf("grow volume %s: %w", l.claim.Volume, err)
	}
	if _, err := l.claim.Update(ctx, func(v *volume.Volume) { v.Status.SizeBytes = size }); err != nil {
		return fmt.Errorf("grow volume %s: %w", l.claim.Volume, err)
	}
	l.mu.Lock()
	l.bytes = size
	l.mu.Unlock()
	if err := l.export.Resize(ctx, size); err != nil {
		return fmt.Errorf("grow volume %s: %w", l.claim.Volume, err)
	}
	return nil
}

// close gives the image and the volume back; the export is closed already.
func (l *loopOnly) close(ctx context.Context) error {
	if err := l.claim.Release(ctx, func(v *volume.Volume) { v.Status.Clean = true }); err != nil {
		return err
	}
	l.release()
	return nil
}
