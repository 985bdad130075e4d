package node

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// NodeExpandVolume waits until the device has the volume's new size and grows the
// filesystem to it, while it is in use.
func (s *Service) NodeExpandVolume(ctx context.Context, req *csipb.NodeExpandVolumeRequest) (*csipb.NodeExpandVolumeResponse, error) {
	id, err := csi.VolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if req.GetVolumePath() == "" {
		return nil, volume.Invalid("volume_path", "", "set")
	}
	unlock, err := s.locks.TryLock(id, "NodeExpandVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := s.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	rec, err := s.recordAt(ctx, id, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if err := checkExpand(v, rec, req); err != nil {
		return nil, err
	}
	size, err := s.expand(ctx, v, rec)
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", id, err)
	}
	return &csipb.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

func checkExpand(v volume.Volume, rec record, req *csipb.NodeExpandVolumeRequest) error {
	if given := req.GetVolumeCapability(); given != nil {
		capability, err := csi.ParseCapability(given)
		if err != nil {
			return err
		}
		if capability.Block != rec.Block {
			return volume.Invalid("volume_capability", capability.EffectiveFSType(), "as the volume was staged: "+rec.kindName())
		}
	}
	required, limit, err := csi.CheckRange(req.GetCapacityRange())
	switch {
	case err != nil:
		return err
	case required > v.Spec.SizeBytes:
		return fmt.Errorf("volume %s has %d bytes, and %d are required: call ControllerExpandVolume first: %w",
			v.ID, v.Spec.SizeBytes, required, volume.ErrOutOfRange)
	case limit > 0 && limit < v.Spec.SizeBytes:
		return fmt.Errorf("volume %s has %d bytes, more than the limit of %d: %w", v.ID, v.Spec.SizeBytes, limit, volume.ErrOutOfRange)
	case rec.readOnly() && !rec.Block:
		return fmt.Errorf("volume %s is mounted read-only; its filesystem grows when it is next staged for writing: %w", v.ID, volume.ErrPrecondition)
	}
	return nil
}

func (s *Service) expand(ctx context.Context, v volume.Volume, rec record) (int64, error) {
	if err := s.serving(ctx, rec); err != nil {
		return 0, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	size, err := s.attacher.Grow(ctx, v.ID, v.Spec.SizeBytes)
	if err != nil || rec.Block {
		return size, err
	}
	return size, s.host.Grow(ctx, host.GrowOptions{Device: rec.Device, Path: rec.Path, FSType: rec.FSType})
}
