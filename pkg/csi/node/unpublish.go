package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// NodeUnpublishVolume takes the volume away from a target path and removes the
// path. What was never published is fine.
func (s *Service) NodeUnpublishVolume(ctx context.Context, req *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	id, idErr := csi.VolumeID(req.GetVolumeId())
	if idErr != nil && !errors.Is(idErr, volume.ErrNotFound) {
		return nil, idErr
	}
	if err := s.checkPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	unlock, err := s.locks.TryLock(id, "NodeUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	path, err := s.inspect(ctx, "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	rec, _, err := s.records.load(id)
	if err != nil {
		return nil, err
	}
	if err := s.unpublish(ctx, rec, path.Resolved); err != nil {
		return nil, fmt.Errorf("unpublish volume %s from %s: %w", id, path.Resolved, err)
	}
	return &csipb.NodeUnpublishVolumeResponse{}, nil
}

// unpublish takes the volume away from a path and forgets it.
func (s *Service) unpublish(ctx context.Context, rec record, path string) error {
	if err := s.clearTarget(ctx, rec, path); err != nil {
		return err
	}
	if _, recorded := rec.Targets[path]; !recorded {
		return nil
	}
	delete(rec.Targets, path)
	return s.records.save(rec)
}

// clearTarget unmounts and removes a target path, unless it is something else.
func (s *Service) clearTarget(ctx context.Context, rec record, path string) error {
	p, err := s.host.Inspect(ctx, path)
	if err != nil {
		return err
	}
	_, recorded := rec.Targets[path]
	devices, err := s.ownDevices(ctx, rec)
	if err != nil {
		return err
	}
	for i := len(p.Mounts) - 1; i >= 0; i-- {
		m := p.Mounts[i]
		if !recorded && !slices.ContainsFunc(devices, m.Of) {
			return fmt.Errorf("the path is mounted with %s, which is not this volume: %w", m, volume.ErrPrecondition)
		}
		if err := s.host.Unmount(ctx, path); err != nil {
			if s.serving(ctx, rec) == nil {
				return err
			}
			if err := s.host.UnmountLazily(ctx, path); err != nil {
				return err
			}
		}
	}
	if len(p.Mounts) == 0 && !recorded {
		return nil // not made by this driver
	}
	if len(p.Mounts) > 0 {
		if p, err = s.host.Inspect(ctx, path); err != nil {
			return err
		}
	}
	if p.Kind == host.KindFile && !p.Empty || p.Kind == host.KindOther {
		return fmt.Errorf("the path is a %s that this driver didn't make: %w", p.Kind, volume.ErrPrecondition)
	}
	return s.host.Remove(path)
}
