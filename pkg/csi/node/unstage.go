package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// NodeUnstageVolume unmounts the volume and gives its lock back. What was never
// staged is fine.
func (s *Service) NodeUnstageVolume(ctx context.Context, req *csipb.NodeUnstageVolumeRequest) (*csipb.NodeUnstageVolumeResponse, error) {
	id, idErr := csi.VolumeID(req.GetVolumeId())
	if idErr != nil && !errors.Is(idErr, volume.ErrNotFound) {
		return nil, idErr
	}
	if err := s.checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if idErr != nil { // it can't exist
		return &csipb.NodeUnstageVolumeResponse{}, nil
	}
	unlock, err := s.locks.TryLock(id, "NodeUnstageVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	path, err := s.inspect(ctx, "staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	rec, exists, err := s.records.load(id)
	switch {
	case err != nil:
		return nil, err
	case exists && rec.Path != path.Resolved && s.serving(ctx, rec) == nil:
		return nil, fmt.Errorf("unstage volume %s: it is staged at %s: %w", id, rec.Path, volume.ErrPrecondition)
	case !exists:
		rec = record{Volume: id, Path: path.Resolved}
	}
	if err := s.takeDown(ctx, rec); err != nil {
		return nil, fmt.Errorf("unstage volume %s: %w", id, err)
	}
	return &csipb.NodeUnstageVolumeResponse{}, nil
}

// takeDown unmounts the staging path, releases the volume and forgets it. It may
// find any of that done.
func (s *Service) takeDown(ctx context.Context, rec record) error {
	attached, isAttached := s.attacher.Get(rec.Volume)
	devices, err := s.ownDevices(ctx, rec)
	if err != nil {
		return err
	}
	if err := s.refusePublished(ctx, rec, devices); err != nil {
		return err
	}
	unmount := s.host.Unmount
	dead := isAttached && !attached.Alive || !isAttached && rec.Kind != kindLoop
	if dead {
		unmount = s.unmountDead
	}
	if err := s.unmountStaging(ctx, rec, devices, unmount); err != nil {
		return err
	}
	if !dead {
		for _, device := range devices {
			if err := s.settle(ctx, rec, device); err != nil {
				return err
			}
		}
	}
	if err := s.attacher.Detach(ctx, rec.Volume); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return s.records.remove(rec.Volume)
}

// ownDevices lists the devices that are the volume's: the one that is attached,
// and the recorded one if its filesystem is still mounted where the volume was
// put. Otherwise the number in its name may long since be another volume's, after
// a reboot at the latest.
func (s *Service) ownDevices(ctx context.Context, rec record) ([]string, error) {
	var devices []string
	if attached, ok := s.attacher.Get(rec.Volume); ok {
		devices = append(devices, attached.Device)
	}
	if rec.Device == "" || slices.Contains(devices, rec.Device) {
		return devices, nil
	}
	for _, path := range append(slices.Sorted(maps.Keys(rec.Targets)), rec.Path) {
		p, err := s.host.Inspect(ctx, path)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(p.Mounts, func(m host.MountPoint) bool { return m.Source == rec.Device }) {
			return append(devices, rec.Device), nil
		}
	}
	return devices, nil
}

// refusePublished refuses to go on while the volume is bound to a target: one
// that is recorded, or any that shows its device.
func (s *Service) refusePublished(ctx context.Context, rec record, devices []string) error {
	for path := range rec.Targets {
		p, err := s.host.Inspect(ctx, path)
		if err != nil {
			return err
		}
		if p.Kind == host.KindMount {
			return fmt.Errorf("it is still published at %s: %w", path, volume.ErrPrecondition)
		}
	}
	for _, device := range devices {
		mounts, err := s.host.MountsOf(ctx, device)
		if err != nil {
			return err
		}
		for _, m := range mounts {
			if m.Path != rec.Path {
				return fmt.Errorf("it is still published at %s: %w", m.Path, volume.ErrPrecondition)
			}
		}
	}
	return nil
}

// unmountDead unmounts a filesystem whose device is gone; lazily, if need be.
func (s *Service) unmountDead(ctx context.Context, path string) error {
	err := s.host.Unmount(ctx, path)
	if err == nil {
		return nil
	}
	s.log.Warn("a dead filesystem is unmounted lazily", "path", path, "error", err)
	return s.host.UnmountLazily(ctx, path)
}

// unmountStaging unmounts what of the volume is mounted at the staging path.
func (s *Service) unmountStaging(ctx context.Context, rec record, devices []string, unmount func(context.Context, string) error) error {
	path, err := s.host.Inspect(ctx, rec.Path)
	if err != nil {
		return err
	}
	for i := len(path.Mounts) - 1; i >= 0; i-- {
		m := path.Mounts[i]
		if !slices.ContainsFunc(devices, m.Of) {
			return fmt.Errorf("%s is mounted with %s, which is not this volume: %w", rec.Path, m, volume.ErrPrecondition)
		}
		if err := unmount(ctx, rec.Path); err != nil {
			return err
		}
	}
	return nil
}

const (
	// settleTimeout is how long the kernel may take to let go of a filesystem.
	settleTimeout = 10 * time.Second
	settlePoll    = 50 * time.Millisecond
)

// settle makes a block volume's writes durable, and waits until the kernel has
// let go of a filesystem: another mount namespace may still have it.
func (s *Service) settle(ctx context.Context, rec record, device string) error {
	if rec.Block {
		if err := s.host.Sync(ctx, device); err != nil {
			return err
		}
		return s.host.SetAccess(ctx, device, host.ReadWrite)
	}
	enough := time.NewTimer(s.settleTimeout)
	defer enough.Stop()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		busy, err := s.host.InUse(ctx, device)
		if err != nil || !busy {
			return err
		}
		select {
		case <-tick.C:
		case <-enough.C:
			return fmt.Errorf("%s is still mounted somewhere, in another mount namespace: %w", device, volume.ErrPrecondition)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// undo takes down what a failed staging brought up, so that the cause may be
// reported with a final code. A volume that is still published from before is
// left as it is. Then, and if undoing fails, the code becomes UNAVAILABLE: after a
// final one kubelet might never unstage what remains.
func (s *Service) undo(ctx context.Context, id volume.ID, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	rec, exists, err := s.records.load(id)
	if err == nil && exists {
		if s.publishedSomewhere(ctx, rec) {
			s.log.Warn("staging failed; the volume is still published and is left as it is", "volume", id)
			return fmt.Errorf("%s; it is still published, and was left as it is: %w", cause.Error(), volume.ErrUnavailable)
		}
		err = s.takeDown(ctx, rec)
	}
	if err != nil {
		// Only as text: neither of the two may choose the code.
		return fmt.Errorf("%s; and it could not be undone: %s: %w", cause.Error(), err.Error(), volume.ErrUnavailable)
	}
	return cause
}

func (s *Service) publishedSomewhere(ctx context.Context, rec record) bool {
	for path := range rec.Targets {
		if p, err := s.host.Inspect(ctx, path); err != nil || p.Kind == host.KindMount {
			return true
		}
	}
	return false
}
