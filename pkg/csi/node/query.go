package node

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// recordAt returns the record of a volume that is at path, staged or published;
// ErrNotFound otherwise, as the specification has it for these calls.
func (s *Service) recordAt(ctx context.Context, id volume.ID, path string) (record, error) {
	rec, exists, err := s.records.load(id)
	if err != nil {
		return record{}, err
	}
	if !exists {
		return record{}, fmt.Errorf("volume %s is not staged on this node: %w", id, volume.ErrNotFound)
	}
	if s.checkPath("volume_path", path) == nil {
		p, err := s.host.Inspect(ctx, filepath.Clean(path))
		if err != nil {
			return record{}, err
		}
		if _, published := rec.Targets[p.Resolved]; published || p.Resolved == rec.Path {
			return rec, nil
		}
	}
	return record{}, fmt.Errorf("volume %s is not at %q: %w", id, path, volume.ErrNotFound)
}

// NodeGetVolumeStats tells how full a volume is.
func (s *Service) NodeGetVolumeStats(ctx context.Context, req *csipb.NodeGetVolumeStatsRequest) (*csipb.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumePath() == "" {
		return nil, volume.Invalid("volume_path", "", "set")
	}
	id, err := csi.VolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	rec, err := s.recordAt(ctx, id, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if rec.Block {
		size, err := s.host.DeviceSize(ctx, rec.Device)
		if err != nil {
			return nil, fmt.Errorf("stats of volume %s: %w", id, err)
		}
		return &csipb.NodeGetVolumeStatsResponse{Usage: []*csipb.VolumeUsage{{Unit: csipb.VolumeUsage_BYTES, Total: size}}}, nil
	}
	u, err := s.host.Usage(ctx, filepath.Clean(req.GetVolumePath()))
	if err != nil {
		return nil, fmt.Errorf("stats of volume %s: %w", id, err)
	}
	return &csipb.NodeGetVolumeStatsResponse{Usage: usageOf(u)}, nil
}

func usageOf(u host.Usage) []*csipb.VolumeUsage {
	usage := []*csipb.VolumeUsage{{
		Unit: csipb.VolumeUsage_BYTES, Total: u.TotalBytes, Used: u.UsedBytes, Available: u.AvailableBytes,
	}}
	if u.TotalInodes > 0 { // btrfs has no fixed number
		usage = append(usage, &csipb.VolumeUsage{
			Unit: csipb.VolumeUsage_INODES, Total: u.TotalInodes, Used: u.UsedInodes, Available: u.FreeInodes,
		})
	}
	return usage
}

// NodeGetVolumeHealth tells what is wrong with a volume, from this node's view.
func (s *Service) NodeGetVolumeHealth(ctx context.Context, req *csipb.NodeGetVolumeHealthRequest) (*csipb.NodeGetVolumeHealthResponse, error) {
	id, err := csi.VolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := s.attacher.Volume(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("health of volume %s: %w", id, err)
	}
	health := csi.NewHealth(id)
	rec, exists, err := s.records.load(id)
	if err != nil {
		return nil, err
	}
	if exists {
		if err := s.serving(ctx, rec); err != nil {
			health.Add(csipb.VolumeHealthErrorType_INACCESSIBLE, "NotServing", fmt.Sprintf("The volume is staged on this node, but %v.", err))
		}
	}
	if _, attached := s.attacher.Get(id); attached {
		h, err := s.attacher.Health(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("health of volume %s: %w", id, err)
		}
		health.AddConditions(h.Conditions)
	}
	for _, e := range csi.HealthOf(v).GetHealthStatuses() {
		health.Add(e.GetStatus(), e.GetReason(), e.GetMessage())
	}
	return &csipb.NodeGetVolumeHealthResponse{VolumeHealth: health.Message()}, nil
}

// NodeGetStorageHealth tells what is wrong with this node's pools: one entry per
// reason, which names them all, as the specification demands.
func (s *Service) NodeGetStorageHealth(ctx context.Context, _ *csipb.NodeGetStorageHealthRequest) (*csipb.NodeGetStorageHealthResponse, error) {
	pools, err := s.attacher.Pools(ctx)
	if err != nil {
		return nil, fmt.Errorf("pools: %w", err)
	}
	var broken, full []string
	for _, p := range pools {
		switch {
		case !p.Healthy:
			broken = append(broken, fmt.Sprintf("%s: %s", p.Name, p.Message))
		case p.Free <= p.Reserve:
			full = append(full, fmt.Sprintf("%s: %d bytes free, %d of them reserved", p.Name, p.Free, p.Reserve))
		}
	}
	resp := &csipb.NodeGetStorageHealthResponse{}
	add := func(t csipb.StorageHealthErrorType, reason string, messages []string) {
		if len(messages) > 0 {
			resp.BackendHealth = append(resp.BackendHealth, &csipb.NodeGetStorageHealthResponse_StorageBackendHealth{
				Status: t, Reason: reason, Message: strings.Join(messages, "; "),
			})
		}
	}
	add(csipb.StorageHealthErrorType_STORAGE_UNREACHABLE, "PoolUnhealthy", broken)
	add(csipb.StorageHealthErrorType_STORAGE_DEGRADED, "PoolFull", full)
	return resp, nil
}
