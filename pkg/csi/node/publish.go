package node

import (
	"context"
	"errors"
	"fmt"

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
	p := publication{
		rec: rec, staging: staging.Resolved, path: path, capability: capability,
		want: target{ReadOnly: req.GetReadonly() || capability.ReadOnly(), Mode: capability.Mode.String()},
	}
	err = s.mayPublish(ctx, p)
	if err == nil {
		err = s.refuseSecondTarget(ctx, p)
	}
	if err == nil {
		err = s.publish(ctx, p)
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s at %s: %w", id, path.Resolved, err)
	}
	return &csipb.NodePublishVolumeResponse{}, nil
}

// publication is what NodePublishVolume was asked for.
type publication struct {
	rec        record // of the staged volume
	staging    string // the staging path that the caller named
	path       host.Path
	capability csi.Capability
	want       target
}

// bind is the mount to make.
func (p publication) bind() host.BindOptions {
	if p.rec.Block {
		return host.BindOptions{Source: p.rec.Device, Target: p.path.Resolved, Access: host.ReadWrite}
	}
	return host.BindOptions{Source: p.rec.Path, Target: p.path.Resolved, Access: p.want.access()}
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
func (s *Service) mayPublish(ctx context.Context, p publication) error {
	rec, c := p.rec, p.capability
	switch {
	case p.staging != rec.Path:
		return fmt.Errorf("it is staged at %s, not at %s: %w", rec.Path, p.staging, volume.ErrPrecondition)
	case c.Block != rec.Block, c.FSType != "" && c.FSType != rec.FSType:
		return fmt.Errorf("it is staged as %s: %w", rec.kindName(), volume.ErrPrecondition)
	case rec.readOnly() && !p.want.ReadOnly:
		return fmt.Errorf("it is staged read-only: %w", volume.ErrPrecondition)
	case rec.Block && p.want.ReadOnly && !rec.readOnly():
		// Binding a device node read-only would not keep anybody from writing.
		return fmt.Errorf("a block volume that is staged for writing can't be published read-only; use SINGLE_NODE_READER_ONLY: %w", volume.ErrPrecondition)
	}
	if err := s.serving(ctx, rec); err != nil {
		return fmt.Errorf("it must be staged again: %w: %w", volume.ErrPrecondition, err)
	}
	return nil
}

// refuseSecondTarget enforces access modes that allow one target only.
func (s *Service) refuseSecondTarget(ctx context.Context, p publication) error {
	multi := csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER.String()
	for path, t := range p.rec.Targets {
		if path == p.path.Resolved || !p.capability.OneTarget() && t.Mode == multi {
			continue
		}
		// The record is written before the mount: look whether that was made.
		other, err := s.host.Inspect(ctx, path)
		if err != nil {
			return err
		}
		if other.Kind == host.KindMount {
			return fmt.Errorf("it is published at %s already, and %s allows one target path only: %w", path, p.capability.Mode, volume.ErrPrecondition)
		}
	}
	return nil
}

// publish binds the volume to the target, unless it is there already.
func (s *Service) publish(ctx context.Context, p publication) error {
	before, recorded := p.rec.Targets[p.path.Resolved]
	if p.path.Kind == host.KindMount {
		shown, err := s.shows(ctx, p.rec, p.path)
		switch {
		case err != nil:
			return err
		case shown && recorded && before != p.want:
			return fmt.Errorf("it is published there with other arguments (%s, read-only %t): %w", before.Mode, before.ReadOnly, volume.ErrExists)
		case shown:
			return s.confirmTarget(ctx, p)
		case !recorded:
			top, _ := p.path.Top()
			return fmt.Errorf("the path is mounted with %s: %w", top, volume.ErrPrecondition)
		}
		s.log.Warn("unmounting a dead target", "volume", p.rec.Volume, "path", p.path.Resolved)
		if err := s.host.UnmountLazily(ctx, p.path.Resolved); err != nil {
			return err
		}
		if p.path, err = s.host.Inspect(ctx, p.path.Resolved); err != nil {
			return err
		}
	}
	if err := fitForTarget(p.rec, p.path); err != nil {
		return err
	}
	p.rec.Targets[p.path.Resolved] = p.want
	if err := s.records.save(p.rec); err != nil {
		return err
	}
	if err := s.makeAndBind(ctx, p); err != nil {
		return s.undoPublish(context.WithoutCancel(ctx), p, err)
	}
	return nil
}

// undoPublish takes away what a failed publication made, so that the cause may be
// reported with a final code. If that fails, the code becomes UNAVAILABLE: after
// a final one the target might never be unpublished.
func (s *Service) undoPublish(ctx context.Context, p publication, cause error) error {
	if err := s.unpublish(ctx, p.rec, p.path.Resolved); err != nil {
		// Only as text: neither of the two may choose the code.
		return fmt.Errorf("%s; and it could not be undone: %s: %w", cause.Error(), err.Error(), volume.ErrUnavailable)
	}
	return cause
}

// confirmTarget finishes a publication that is mounted already.
func (s *Service) confirmTarget(ctx context.Context, p publication) error {
	if p.rec.Targets[p.path.Resolved] != p.want {
		p.rec.Targets[p.path.Resolved] = p.want
		if err := s.records.save(p.rec); err != nil {
			return err
		}
	}
	top, _ := p.path.Top()
	if p.rec.Block || top.ReadOnly == p.want.ReadOnly || p.rec.readOnly() {
		return nil
	}
	return s.host.Rebind(ctx, p.bind()) // a crash between the two steps of a read-only bind
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

func (s *Service) makeAndBind(ctx context.Context, p publication) error {
	bind := p.bind()
	var err error
	switch {
	case p.path.Kind != host.KindMissing:
	case p.rec.Block:
		err = s.host.MakeFile(bind.Target)
	default:
		err = s.host.MakeDir(bind.Target)
	}
	if err != nil {
		return err
	}
	return s.host.Bind(ctx, bind)
}
