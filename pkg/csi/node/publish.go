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

// NodePublishVolume makes a staged volume appear at a target path: its directory,
// or its block device as a file.
func (s *Service) NodePublishVolume(ctx context.Context, req *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	id, capability, err := s.parsePublish(req)
	if err != nil {
		return nil, err
	}
	unlock, err := s.locks.TryLock(id, "NodePublishVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := s.stagedRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	staging, err := s.inspect(ctx, "staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	path, err := s.inspect(ctx, "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	want := target{ReadOnly: req.GetReadonly() || capability.ReadOnly(), Mode: capability.Mode.String()}
	err = s.mayPublish(ctx, rec, capability, want, staging.Resolved)
	if err == nil {
		err = s.refuseSecondTarget(ctx, rec, capability, path.Resolved)
	}
	if err == nil {
		err = s.publish(ctx, rec, path, want)
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s at %s: %w", id, path.Resolved, err)
	}
	return &csipb.NodePublishVolumeResponse{}, nil
}

func (s *Service) parsePublish(req *csipb.NodePublishVolumeRequest) (volume.ID, csi.Capability, error) {
	id, idErr := csi.VolumeID(req.GetVolumeId())
	if idErr != nil && !errors.Is(idErr, volume.ErrNotFound) {
		return "", csi.Capability{}, idErr
	}
	if err := s.checkPath("target_path", req.GetTargetPath()); err != nil {
		return "", csi.Capability{}, err
	}
	capability, err := csi.ParseCapability(req.GetVolumeCapability())
	if err != nil {
		return "", csi.Capability{}, err
	}
	if req.GetStagingTargetPath() == "" { // the specification's own code for it
		return "", csi.Capability{}, fmt.Errorf("staging_target_path is not set: %w", volume.ErrPrecondition)
	}
	if err := s.checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return "", csi.Capability{}, err
	}
	return id, capability, idErr
}

// stagedRecord returns the record of a volume that must be staged here:
// ErrNotFound if there is no such volume, else ErrPrecondition.
func (s *Service) stagedRecord(ctx context.Context, id volume.ID) (record, error) {
	rec, exists, err := s.records.load(id)
	if err != nil {
		return record{}, err
	}
	if exists {
		return rec, nil
	}
	if _, err := s.volume(ctx, id); err != nil {
		return record{}, err
	}
	return record{}, fmt.Errorf("volume %s is not staged on this node: %w", id, volume.ErrPrecondition)
}

// mayPublish says whether the staged volume can be published so.
func (s *Service) mayPublish(ctx context.Context, rec record, c csi.Capability, want target, staging string) error {
	switch {
	case staging != rec.Path:
		return fmt.Errorf("it is staged at %s, not at %s: %w", rec.Path, staging, volume.ErrPrecondition)
	case c.Block != rec.Block, c.FSType != "" && c.FSType != rec.FSType:
		return fmt.Errorf("it is staged as %s: %w", rec.kindName(), volume.ErrPrecondition)
	case rec.readOnly() && !want.ReadOnly:
		return fmt.Errorf("it is staged read-only: %w", volume.ErrPrecondition)
	case rec.Block && want.ReadOnly && !rec.readOnly():
		// Binding a device node read-only would not keep anybody from writing.
		return fmt.Errorf("a block volume that is staged for writing can't be published read-only; use SINGLE_NODE_READER_ONLY: %w", volume.ErrPrecondition)
	}
	if err := s.serving(ctx, rec); err != nil {
		return fmt.Errorf("it must be staged again: %w: %w", volume.ErrPrecondition, err)
	}
	return nil
}

// refuseSecondTarget enforces access modes that allow one target only.
func (s *Service) refuseSecondTarget(ctx context.Context, rec record, c csi.Capability, path string) error {
	multi := csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER.String()
	for other, t := range rec.Targets {
		if other == path || !c.OneTarget() && t.Mode == multi {
			continue
		}
		// The record is written before the mount: look whether that was made.
		p, err := s.host.Inspect(ctx, other)
		if err != nil {
			return err
		}
		if p.Kind == host.KindMount {
			return fmt.Errorf("it is published at %s already, and %s allows one target path only: %w", other, c.Mode, volume.ErrPrecondition)
		}
	}
	return nil
}

// publish binds the volume to the target, unless it is there already.
func (s *Service) publish(ctx context.Context, rec record, path host.Path, want target) error {
	bind := host.BindOptions{Source: rec.Path, Target: path.Resolved, Access: want.access()}
	if rec.Block {
		bind.Source, bind.Access = rec.Device, host.ReadWrite
	}
	before, recorded := rec.Targets[path.Resolved]
	if path.Kind == host.KindMount {
		shown, err := s.shows(ctx, rec, path)
		switch {
		case err != nil:
			return err
		case shown && recorded && before != want:
			return fmt.Errorf("it is published there with other arguments (%s, read-only %t): %w", before.Mode, before.ReadOnly, volume.ErrExists)
		case shown:
			return s.confirmTarget(ctx, rec, path, bind, want)
		case !recorded:
			top, _ := path.Top()
			return fmt.Errorf("the path is mounted with %s: %w", top, volume.ErrPrecondition)
		}
		s.log.Warn("unmounting a dead target", "volume", rec.Volume, "path", path.Resolved)
		if err := s.host.UnmountLazily(ctx, path.Resolved); err != nil {
			return err
		}
		if path, err = s.host.Inspect(ctx, path.Resolved); err != nil {
			return err
		}
	}
	if err := fitForTarget(rec, path); err != nil {
		return err
	}
	rec.Targets[path.Resolved] = want
	if err := s.records.save(rec); err != nil {
		return err
	}
	if err := s.makeAndBind(ctx, rec, bind, path.Kind); err != nil {
		return s.unpublish(context.WithoutCancel(ctx), rec, path.Resolved, err)
	}
	return nil
}

// confirmTarget finishes a publication that is mounted already.
func (s *Service) confirmTarget(ctx context.Context, rec record, path host.Path, bind host.BindOptions, want target) error {
	if rec.Targets[path.Resolved] != want {
		rec.Targets[path.Resolved] = want
		if err := s.records.save(rec); err != nil {
			return err
		}
	}
	top, _ := path.Top()
	if rec.Block || top.ReadOnly == want.ReadOnly || rec.readOnly() {
		return nil
	}
	return s.host.Rebind(ctx, bind) // a crash between the two steps of a read-only bind
}

// shows says whether what is mounted at the target is the staged volume.
func (s *Service) shows(ctx context.Context, rec record, path host.Path) (bool, error) {
	top, _ := path.Top()
	if rec.Block {
		return top.IsNode(rec.Device), nil
	}
	staging, err := s.host.Inspect(ctx, rec.Path)
	if err != nil {
		return false, err
	}
	source, mounted := staging.Top()
	return mounted && top.Device == source.Device && top.Root == source.Root, nil
}

// fitForTarget refuses to hide what is at the target path.
func fitForTarget(rec record, path host.Path) error {
	wanted := host.KindDirectory
	if rec.Block {
		wanted = host.KindFile
	}
	switch {
	case path.Kind == host.KindMissing:
		return nil
	case path.Kind != wanted:
		return fmt.Errorf("the path is a %s, not a %s: %w", path.Kind, wanted, volume.ErrPrecondition)
	case !path.Empty:
		return fmt.Errorf("the %s is not empty, and would be hidden: %w", path.Kind, volume.ErrPrecondition)
	}
	return nil
}

func (s *Service) makeAndBind(ctx context.Context, rec record, bind host.BindOptions, kind host.Kind) error {
	var err error
	switch {
	case kind != host.KindMissing:
	case rec.Block:
		err = s.host.MakeFile(bind.Target)
	default:
		err = s.host.MakeDir(bind.Target)
	}
	if err != nil {
		return err
	}
	return s.host.Bind(ctx, bind)
}

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
	if err := s.unpublish(ctx, rec, path.Resolved, nil); err != nil {
		return nil, fmt.Errorf("unpublish volume %s from %s: %w", id, path.Resolved, err)
	}
	return &csipb.NodeUnpublishVolumeResponse{}, nil
}

// unpublish takes the volume away from a path and forgets it. It returns cause,
// for which a publication is undone, if there is one.
func (s *Service) unpublish(ctx context.Context, rec record, path string, cause error) error {
	if err := s.clearTarget(ctx, rec, path); err != nil {
		return errors.Join(cause, err)
	}
	if _, recorded := rec.Targets[path]; recorded {
		delete(rec.Targets, path)
		if err := s.records.save(rec); err != nil {
			return errors.Join(cause, err)
		}
	}
	return cause
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
