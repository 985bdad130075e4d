package csi

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Provisioner makes, changes and tells about volumes. Package controller has the
// implementation. Every method takes its deadline from ctx, may be repeated, and
// returns errors that wrap the sentinels of package volume.
type Provisioner interface {
	// Create makes a volume, or returns the one of that name if it is as asked;
	// ErrExists if it differs, ErrNoSpace if no placement has room.
	Create(context.Context, controller.CreateRequest) (volume.Volume, error)
	// Delete removes a volume; nil if there is none, ErrPrecondition while a live
	// node holds it.
	Delete(context.Context, volume.ID) error
	// Get returns a volume, or ErrNotFound.
	Get(context.Context, volume.ID) (volume.Volume, error)
	// List returns the volumes that are ready, sorted by ID.
	List(context.Context) ([]volume.Volume, error)
	// Expand makes a volume at least size bytes large.
	Expand(ctx context.Context, id volume.ID, size int64) (volume.Volume, error)
	// SetReplicas changes how many replicas a volume is to have; ErrPrecondition for
	// a volume that can't have another number.
	SetReplicas(ctx context.Context, id volume.ID, n int) (volume.Volume, error)
	// Capacity tells what could be created.
	Capacity(context.Context, controller.CapacityRequest) (controller.Capacity, error)
	// Topology tells from where a volume is accessible; nil: from everywhere.
	Topology(context.Context, volume.Volume) ([]map[string]string, error)
	// Ready is nil when calls can be served; ErrUnavailable: not now.
	Ready(context.Context) error
}

// Controller is the CSI Controller service.
type Controller struct {
	csipb.UnimplementedControllerServer
	volumes Provisioner
	locks   Locks
}

// NewController makes a Controller over the service that does the work.
func NewController(p Provisioner) *Controller { return &Controller{volumes: p} }

var controllerCapabilities = []csipb.ControllerServiceCapability_RPC_Type{
	csipb.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	csipb.ControllerServiceCapability_RPC_LIST_VOLUMES,
	csipb.ControllerServiceCapability_RPC_GET_CAPACITY,
	csipb.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	csipb.ControllerServiceCapability_RPC_GET_VOLUME,
	csipb.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csipb.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
	csipb.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	csipb.ControllerServiceCapability_RPC_MODIFY_VOLUME,
}

// ControllerGetCapabilities lists what the service implements.
func (*Controller) ControllerGetCapabilities(context.Context, *csipb.ControllerGetCapabilitiesRequest) (*csipb.ControllerGetCapabilitiesResponse, error) {
	resp := &csipb.ControllerGetCapabilitiesResponse{}
	for _, t := range controllerCapabilities {
		resp.Capabilities = append(resp.Capabilities, &csipb.ControllerServiceCapability{
			Type: &csipb.ControllerServiceCapability_Rpc{Rpc: &csipb.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// CreateVolume makes a volume, or finds the one of that name if it is as asked.
func (c *Controller) CreateVolume(ctx context.Context, req *csipb.CreateVolumeRequest) (*csipb.CreateVolumeResponse, error) {
	create, err := parseCreate(req)
	if err != nil {
		return nil, err
	}
	unlock, err := c.locks.TryLock(volume.IDFor(create.Spec.Name), "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := c.volumes.Create(ctx, create)
	if err != nil {
		return nil, fmt.Errorf("create volume %q: %w", create.Spec.Name, err)
	}
	reply, err := c.describe(ctx, v)
	if err != nil {
		return nil, err
	}
	return &csipb.CreateVolumeResponse{Volume: reply}, nil
}

// parseCreate checks a CreateVolumeRequest completely. Secrets are ignored: the
// driver needs none.
func parseCreate(req *csipb.CreateVolumeRequest) (controller.CreateRequest, error) {
	none := controller.CreateRequest{}
	if err := volume.ValidateName(req.GetName()); err != nil {
		return none, err
	}
	if req.GetVolumeContentSource() != nil {
		return none, volume.Invalid("volume_content_source", "set", "empty: this version can't create a volume from a snapshot or another volume")
	}
	capability, err := ParseCapabilities(req.GetVolumeCapabilities())
	if err != nil {
		return none, err
	}
	params, err := parseParamsFor(capability, req.GetParameters())
	if err != nil {
		return none, err
	}
	if err := applyMutable(&params, req.GetMutableParameters()); err != nil {
		return none, err
	}
	size, err := chooseSize(req.GetCapacityRange(), capability.MinimumBytes())
	if err != nil {
		return none, err
	}
	requisite, err := segments("accessibility_requirements.requisite", req.GetAccessibilityRequirements().GetRequisite())
	if err != nil {
		return none, err
	}
	preferred, err := segments("accessibility_requirements.preferred", req.GetAccessibilityRequirements().GetPreferred())
	if err != nil {
		return none, err
	}
	return controller.CreateRequest{
		Spec: volume.Spec{
			Name: req.GetName(), SizeBytes: size, Params: params, Block: capability.Block, FSType: capability.EffectiveFSType(),
		},
		RequiredBytes: req.GetCapacityRange().GetRequiredBytes(),
		LimitBytes:    req.GetCapacityRange().GetLimitBytes(),
		Requisite:     requisite,
		Preferred:     preferred,
	}, nil
}

// parseParamsFor checks the parameters for what will be in the volume. A class
// with mkfsOptions may serve block volumes too, which ignore them.
func parseParamsFor(capability Capability, given map[string]string) (volume.Params, error) {
	params, err := ParseParams(given)
	if err != nil {
		return volume.Params{}, err
	}
	if capability.Block {
		params.MkfsOptions = ""
		return params, nil
	}
	_, err = ParseMkfsOptions(capability.EffectiveFSType(), params.MkfsOptions)
	return params, err
}

// describe builds the message for a volume.
func (c *Controller) describe(ctx context.Context, v volume.Volume) (*csipb.Volume, error) {
	accessible, err := c.volumes.Topology(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("topology of volume %s: %w", v.ID, err)
	}
	return &csipb.Volume{VolumeId: string(v.ID), CapacityBytes: v.Spec.SizeBytes, AccessibleTopology: topologies(accessible)}, nil
}

// DeleteVolume removes a volume; one that doesn't exist is fine, and so is an
// identifier that can't exist.
func (c *Controller) DeleteVolume(ctx context.Context, req *csipb.DeleteVolumeRequest) (*csipb.DeleteVolumeResponse, error) {
	id, err := VolumeID(req.GetVolumeId())
	if isNotFound(err) {
		return &csipb.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	unlock, err := c.locks.TryLock(id, "DeleteVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := c.volumes.Delete(ctx, id); err != nil && !isNotFound(err) {
		return nil, fmt.Errorf("delete volume %s: %w", id, err)
	}
	return &csipb.DeleteVolumeResponse{}, nil
}

// ControllerExpandVolume makes a volume larger, online or not.
func (c *Controller) ControllerExpandVolume(ctx context.Context, req *csipb.ControllerExpandVolumeRequest) (*csipb.ControllerExpandVolumeResponse, error) {
	id, err := VolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	required, limit, err := CheckRange(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	if required == 0 && limit == 0 {
		return nil, volume.Invalid("capacity_range", "", "set: how large shall the volume become")
	}
	unlock, err := c.locks.TryLock(id, "ControllerExpandVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := c.volumes.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", id, err)
	}
	if err := fitsRequest(v, req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	v, err = c.expand(ctx, v, required, limit)
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerExpandVolumeResponse{
		CapacityBytes: v.Spec.SizeBytes,
		// A block volume that nobody holds will be opened with its new size.
		NodeExpansionRequired: !v.Spec.Block || v.Status.Holder != nil,
	}, nil
}

// fitsRequest checks the optional capability of a request against the volume.
// By the specification a mismatch is INVALID_ARGUMENT here.
func fitsRequest(v volume.Volume, given *csipb.VolumeCapability) error {
	if given == nil {
		return nil
	}
	capability, err := ParseCapability(given)
	if err != nil {
		return err
	}
	if err := capability.Fits(v.Spec); err != nil {
		return fmt.Errorf("%w: %w", volume.ErrInvalid, err)
	}
	return nil
}

// expand grows v to required bytes, rounded up; a volume that is as large
// already stays as it is. It never shrinks one.
func (c *Controller) expand(ctx context.Context, v volume.Volume, required, limit int64) (volume.Volume, error) {
	size, err := roundUp(required, limit)
	if err != nil {
		return volume.Volume{}, err
	}
	if limit > 0 && v.Spec.SizeBytes > limit {
		return volume.Volume{}, fmt.Errorf("expand volume %s: it has %d bytes already, more than the limit of %d, and volumes never shrink: %w",
			v.ID, v.Spec.SizeBytes, limit, volume.ErrOutOfRange)
	}
	// Also when the size is right: an earlier call may not have been finished.
	return c.volumes.Expand(ctx, v.ID, max(size, v.Spec.SizeBytes))
}
