package kubelet

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Provisioner plays the controller's sidecars: external-provisioner,
// external-resizer and the health monitor.
type Provisioner struct{ Socket string }

// Call makes any call, with the sidecars' deadline.
func (p *Provisioner) Call(ctx context.Context, do func(context.Context, csipb.ControllerClient) error) error {
	return call(ctx, p.Socket, ControllerTimeout, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, csipb.NewControllerClient(conn))
	})
}

// Create provisions a volume.
func (p *Provisioner) Create(ctx context.Context, s Spec) (Volume, error) {
	req := &csipb.CreateVolumeRequest{
		Name: s.Name, Parameters: s.Params, VolumeCapabilities: []*csipb.VolumeCapability{s.Capability()},
		CapacityRange: &csipb.CapacityRange{RequiredBytes: s.SizeBytes, LimitBytes: s.LimitBytes},
	}
	if s.On != "" {
		here := []*csipb.Topology{{Segments: map[string]string{volume.TopologyHost: s.On}}}
		req.AccessibilityRequirements = &csipb.TopologyRequirement{Requisite: here, Preferred: here}
	}
	v := Volume{Spec: s}
	err := p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) error {
		resp, err := c.CreateVolume(ctx, req)
		if err != nil {
			return err
		}
		v.ID, v.SizeBytes = resp.GetVolume().GetVolumeId(), resp.GetVolume().GetCapacityBytes()
		for _, t := range resp.GetVolume().GetAccessibleTopology() {
			v.Nodes = append(v.Nodes, t.GetSegments()[volume.TopologyHost])
		}
		return nil
	})
	if err != nil {
		return Volume{}, fmt.Errorf("CreateVolume %s: %w", s.Name, err)
	}
	return v, nil
}

// Delete removes a volume.
func (p *Provisioner) Delete(ctx context.Context, v Volume) error {
	return p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) error {
		if _, err := c.DeleteVolume(ctx, &csipb.DeleteVolumeRequest{VolumeId: v.ID}); err != nil {
			return fmt.Errorf("DeleteVolume %s: %w", v.Spec.Name, err)
		}
		return nil
	})
}

// Expand asks for size bytes and returns what the volume has now. What is left
// to do on the node is for Node.Expand.
func (p *Provisioner) Expand(ctx context.Context, v Volume, size int64) (*csipb.ControllerExpandVolumeResponse, error) {
	var resp *csipb.ControllerExpandVolumeResponse
	err := p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) (err error) {
		resp, err = c.ControllerExpandVolume(ctx, &csipb.ControllerExpandVolumeRequest{
			VolumeId: v.ID, CapacityRange: &csipb.CapacityRange{RequiredBytes: size}, VolumeCapability: v.Spec.Capability(),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ControllerExpandVolume %s: %w", v.Spec.Name, err)
	}
	return resp, nil
}

// Get asks for one volume.
func (p *Provisioner) Get(ctx context.Context, v Volume) (*csipb.ControllerGetVolumeResponse, error) {
	var resp *csipb.ControllerGetVolumeResponse
	err := p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) (err error) {
		resp, err = c.ControllerGetVolume(ctx, &csipb.ControllerGetVolumeRequest{VolumeId: v.ID})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ControllerGetVolume %s: %w", v.Spec.Name, err)
	}
	return resp, nil
}

// Health asks what is wrong with a volume; an empty list is good.
func (p *Provisioner) Health(ctx context.Context, v Volume) ([]*csipb.VolumeHealth_VolumeHealthEntry, error) {
	var list []*csipb.VolumeHealth_VolumeHealthEntry
	err := p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) error {
		resp, err := c.ControllerGetVolumeHealth(ctx, &csipb.ControllerGetVolumeHealthRequest{VolumeId: v.ID})
		list = resp.GetVolumeHealth().GetHealthStatuses()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ControllerGetVolumeHealth %s: %w", v.Spec.Name, err)
	}
	return list, nil
}

// List asks for the identifiers of all volumes, by pages.
func (p *Provisioner) List(ctx context.Context) ([]string, error) {
	var ids []string
	err := p.Call(ctx, func(ctx context.Context, c csipb.ControllerClient) error {
		for token := ""; ; {
			resp, err := c.ListVolumes(ctx, &csipb.ListVolumesRequest{MaxEntries: 100, StartingToken: token})
			if err != nil {
				return fmt.Errorf("ListVolumes: %w", err)
			}
			for _, e := range resp.GetEntries() {
				ids = append(ids, e.GetVolume().GetVolumeId())
			}
			if token = resp.GetNextToken(); token == "" {
				return nil
			}
		}
	})
	return ids, err
}
