package node

import (
	"context"
	"errors"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/attach"
	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// NodeStageVolume takes the volume's lock for this node, makes it a block device,
// formats it the first time, and mounts it at the staging path. A block volume is
// only attached. What an earlier process left half-done, or left dead, is
// repaired.
func (s *Service) NodeStageVolume(ctx context.Context, req *csipb.NodeStageVolumeRequest) (*csipb.NodeStageVolumeResponse, error) {
	id, capability, err := s.parseStage(req)
	if err != nil {
		return nil, err
	}
	unlock, err := s.locks.TryLock(id, "NodeStageVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := s.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := s.usable(v, capability); err != nil {
		return nil, err
	}
	path, err := s.inspect(ctx, "staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if path.Kind != host.KindDirectory && path.Kind != host.KindMount {
		return nil, volume.Invalid("staging_target_path", req.GetStagingTargetPath(), "an existing directory; it is: "+string(path.Kind))
	}
	capability.FSType = effectiveFSType(v, capability)
	if err := s.stage(ctx, v, newRecord(id, path.Resolved, capability)); err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", id, err)
	}
	return &csipb.NodeStageVolumeResponse{}, nil
}

func (s *Service) parseStage(req *csipb.NodeStageVolumeRequest) (volume.ID, csi.Capability, error) {
	id, idErr := csi.VolumeID(req.GetVolumeId())
	if idErr != nil && !errors.Is(idErr, volume.ErrNotFound) {
		return "", csi.Capability{}, idErr
	}
	if err := s.checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return "", csi.Capability{}, err
	}
	capability, err := csi.ParseCapability(req.GetVolumeCapability())
	if err != nil {
		return "", csi.Capability{}, err
	}
	return id, capability, idErr
}

// effectiveFSType is the filesystem to mount: what is asked for, or else what the
// volume was created with.
func effectiveFSType(v volume.Volume, c csi.Capability) string {
	switch {
	case c.Block || c.FSType != "":
		return c.FSType
	case v.Spec.FSType != "":
		return v.Spec.FSType
	}
	return csi.DefaultFSType
}

// usable says whether the volume can be used so, on this node.
func (s *Service) usable(v volume.Volume, c csi.Capability) error {
	if err := c.Fits(v.Spec); err != nil {
		return fmt.Errorf("volume %s: %w", v.ID, err)
	}
	node := s.attacher.Node().ID
	if v.Spec.Params.Locality == volume.LocalityStrict && v.ReplicaOn(node) < 0 {
		return fmt.Errorf("volume %s has locality strict and no replica on node %s: %w", v.ID, node, volume.ErrPrecondition)
	}
	return nil
}

// stage brings a volume up as want says, or leaves nothing of it behind.
func (s *Service) stage(ctx context.Context, v volume.Volume, want record) error {
	old, exists, err := s.records.load(want.Volume)
	if err != nil {
		return err
	}
	if exists {
		switch done, err := s.staged(ctx, old, want); {
		case err != nil:
			return err
		case done: // an earlier process may have ended just before this step
			if err := s.clearDataLoss(ctx, v); err != nil { // not final: it stays staged
				return fmt.Errorf("it is staged, but: %s: %w", err.Error(), volume.ErrUnavailable)
			}
			return nil
		}
		want.Device, want.Kind, want.Targets = old.Device, old.Kind, old.Targets
	}
	if err := s.refuseForeign(ctx, want); err != nil {
		return err
	}
	if err := s.records.save(want); err != nil {
		return err
	}
	if err := s.bringUp(ctx, want); err != nil {
		s.raiseDataLoss(ctx, want.Volume, err)
		return s.undo(ctx, want.Volume, err)
	}
	return nil
}

// staged says whether the volume is staged as wanted already. ErrExists if it is
// staged in another way, ErrPrecondition if at another path.
func (s *Service) staged(ctx context.Context, old, want record) (bool, error) {
	serving := s.serving(ctx, old) == nil
	switch {
	case !serving: // left half-done or dead: bring it up anew
		return false, nil
	case old.Path != want.Path:
		return false, fmt.Errorf("it is staged at %s already: %w", old.Path, volume.ErrPrecondition)
	case !old.asAsked(want):
		return false, fmt.Errorf("it is staged there with another capability (%s, %s): %w", old.kindName(), old.Mode, volume.ErrExists)
	}
	return true, nil
}

func (r record) kindName() string {
	if r.Block {
		return "block"
	}
	return r.FSType
}

// serving says whether a staged volume can be used: nil, or why not.
func (s *Service) serving(ctx context.Context, rec record) error {
	attached, ok := s.attacher.Get(rec.Volume)
	switch {
	case ok && !attached.Alive:
		return fmt.Errorf("its export is dead: %w", volume.ErrPrecondition)
	case ok && attached.Device != rec.Device:
		return fmt.Errorf("it was attached anew, as %s: %w", attached.Device, volume.ErrPrecondition)
	case !ok && (rec.Block || rec.Kind != kindLoop):
		return fmt.Errorf("it is not attached: %w", volume.ErrPrecondition)
	case rec.Block:
		return nil
	}
	path, err := s.host.Inspect(ctx, rec.Path)
	if err != nil {
		return err
	}
	if top, mounted := path.Top(); !mounted || top.Source != rec.Device {
		return fmt.Errorf("it is not mounted at %s: %w", rec.Path, volume.ErrPrecondition)
	}
	return s.host.Alive(ctx, rec.Path)
}

// kindLoop is the kind of export that lives in the kernel alone, so that it
// outlives the process that made it.
const kindLoop = "loop"

// bringUp attaches, formats and mounts. It may find any of that done.
func (s *Service) bringUp(ctx context.Context, want record) error {
	attached, err := s.attach(ctx, want)
	if err != nil {
		return err
	}
	dead := want.Device
	want.Device, want.Kind = attached.Device, attached.Kind
	if err := s.clearStaging(ctx, want, dead); err != nil {
		return err
	}
	if err := s.records.save(want); err != nil {
		return err
	}
	// Set in any case: a loop device keeps what an earlier user of it set.
	if err := s.host.SetAccess(ctx, want.Device, want.deviceAccess()); err != nil || want.Block {
		return err
	}
	// The object is read again: what the store says about the format counts
	// from the moment at which this node holds the volume.
	v, err := s.volume(ctx, want.Volume)
	if err != nil {
		return err
	}
	if err := s.mount(ctx, v, want); err != nil {
		return err
	}
	return s.clearDataLoss(ctx, v)
}

// deviceAccess is how the device itself may be used. A filesystem is protected by
// its mount, and has to replay its log.
func (r record) deviceAccess() host.Access {
	if r.Block && r.readOnly() {
		return host.ReadOnly
	}
	return host.ReadWrite
}

// attach attaches the volume; a dead export is replaced, with what is mounted of
// it at the staging path.
func (s *Service) attach(ctx context.Context, want record) (attach.Attachment, error) {
	if old, ok := s.attacher.Get(want.Volume); ok && !old.Alive {
		s.log.Warn("replacing a dead export", "volume", want.Volume, "device", old.Device)
		if err := s.clearStaging(ctx, record{Path: want.Path, Volume: want.Volume}, old.Device); err != nil {
			return attach.Attachment{}, err
		}
		if err := s.attacher.Detach(ctx, want.Volume); err != nil {
			return attach.Attachment{}, fmt.Errorf("detach the dead export: %w", err)
		}
	}
	attached, err := s.attacher.Attach(ctx, want.Volume)
	if err == nil && !attached.Alive {
		err = fmt.Errorf("export %s died at once: %w", attached.Device, volume.ErrUnavailable)
	}
	return attached, err
}
