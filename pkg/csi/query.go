package csi

import (
	"context"
	"errors"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func isNotFound(err error) bool { return errors.Is(err, volume.ErrNotFound) }

// ControllerGetVolume tells about one volume.
func (c *Controller) ControllerGetVolume(ctx context.Context, req *csipb.ControllerGetVolumeRequest) (*csipb.ControllerGetVolumeResponse, error) {
	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	reply, err := c.describe(ctx, v)
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerGetVolumeResponse{
		Volume: reply,
		Status: &csipb.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: holders(v)},
	}, nil
}

func (c *Controller) get(ctx context.Context, given string) (volume.Volume, error) {
	id, err := VolumeID(given)
	if err != nil {
		return volume.Volume{}, err
	}
	v, err := c.volumes.Get(ctx, id)
	if err != nil {
		return volume.Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	return v, nil
}

// holders lists the node that holds the volume. LIST_VOLUMES_PUBLISHED_NODES is
// not claimed, because it needs ControllerPublishVolume; this is for people.
func holders(v volume.Volume) []string {
	if v.Status.Holder == nil {
		return nil
	}
	return []string{string(v.Status.Holder.Node)}
}

// ValidateVolumeCapabilities tells whether a volume can be used in all the ways
// asked for. What is merely impossible is not an error, but a reply that says why.
func (c *Controller) ValidateVolumeCapabilities(
	ctx context.Context, req *csipb.ValidateVolumeCapabilitiesRequest,
) (*csipb.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := VolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, volume.Invalid("volume_capabilities", "", "set")
	}
	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if why := whyNot(v, req); why != "" {
		return &csipb.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	return &csipb.ValidateVolumeCapabilitiesResponse{Confirmed: &csipb.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

// whyNot says why the volume can't be used so; "" when it can.
func whyNot(v volume.Volume, req *csipb.ValidateVolumeCapabilitiesRequest) string {
	if err := confirm(v, req); err != nil {
		return err.Error()
	}
	return ""
}

func confirm(v volume.Volume, req *csipb.ValidateVolumeCapabilitiesRequest) error {
	for _, given := range req.GetVolumeCapabilities() {
		capability, err := ParseCapability(given)
		if err != nil {
			return err
		}
		if err := capability.Fits(v.Spec); err != nil {
			return err
		}
	}
	now := wanted(&v)
	want := now
	if err := applyMutable(&want, req.GetMutableParameters()); err != nil {
		return err
	}
	if want != now {
		return fmt.Errorf("the volume is wanted with other mutable parameters: %+v, not %+v", now, want)
	}
	if len(req.GetParameters()) == 0 {
		return nil
	}
	params, err := parseParamsFor(Capability{Block: v.Spec.Block, FSType: v.Spec.FSType}, req.GetParameters())
	if err != nil {
		return err
	}
	if params != v.Spec.Params {
		return fmt.Errorf("the volume was created with other parameters: %+v, not %+v", v.Spec.Params, params)
	}
	return nil
}

// ListVolumes lists the volumes by pages.
func (c *Controller) ListVolumes(ctx context.Context, req *csipb.ListVolumesRequest) (*csipb.ListVolumesResponse, error) {
	page := pageRequest{max: req.GetMaxEntries(), token: req.GetStartingToken()}
	if err := page.check(); err != nil {
		return nil, err
	}
	all, err := c.volumes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	volumes, next := page.cut(all)
	resp := &csipb.ListVolumesResponse{NextToken: next}
	for _, v := range volumes {
		reply, err := c.describe(ctx, v)
		if err != nil {
			return nil, err
		}
		resp.Entries = append(resp.Entries, &csipb.ListVolumesResponse_Entry{
			Volume: reply,
			Status: &csipb.ListVolumesResponse_VolumeStatus{PublishedNodeIds: holders(v)},
		})
	}
	return resp, nil
}

// pageRequest asks for a piece of the list of volumes, which is sorted by ID.
// The token is the last ID of the page before: it stays good whatever is created
// or deleted in between.
type pageRequest struct {
	max   int32 // 0: no limit
	token string
}

func (p pageRequest) check() error {
	if p.max < 0 {
		return volume.Invalid("max_entries", fmt.Sprint(p.max), "not negative")
	}
	if p.token != "" && volume.ID(p.token).Validate() != nil {
		return status.Errorf(codes.Aborted, "starting_token %q is not one that this driver gave out; start again without one", p.token)
	}
	return nil
}

func (p pageRequest) cut(sorted []volume.Volume) (page []volume.Volume, next string) {
	for _, v := range sorted {
		if string(v.ID) <= p.token {
			continue
		}
		if p.max > 0 && len(page) == int(p.max) {
			return page, string(page[len(page)-1].ID)
		}
		page = append(page, v)
	}
	return page, ""
}

// GetCapacity tells how much could be created. An access mode isn't needed:
// the external-provisioner asks with none.
func (c *Controller) GetCapacity(ctx context.Context, req *csipb.GetCapacityRequest) (*csipb.GetCapacityResponse, error) {
	capability, params, err := parseCapacity(req)
	if err != nil {
		return nil, err
	}
	ask := controller.CapacityRequest{Params: params}
	if t := req.GetAccessibleTopology(); t != nil {
		list, err := segments("accessible_topology", []*csipb.Topology{t})
		if err != nil {
			return nil, err
		}
		ask.Topology = list[0]
	}
	room, err := c.volumes.Capacity(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("capacity: %w", err)
	}
	minimum := max(room.Minimum, capability.MinimumBytes())
	if room.Maximum < minimum {
		room.Maximum, room.Available = 0, 0
	}
	return &csipb.GetCapacityResponse{
		AvailableCapacity: max(0, room.Available),
		MaximumVolumeSize: wrapperspb.Int64(max(0, room.Maximum)),
		MinimumVolumeSize: wrapperspb.Int64(minimum),
	}, nil
}

func parseCapacity(req *csipb.GetCapacityRequest) (Capability, volume.Params, error) {
	var capability Capability
	if list := req.GetVolumeCapabilities(); len(list) > 0 {
		var err error
		if capability, err = mergeCapabilities(list, parseForCapacity); err != nil {
			return Capability{}, volume.Params{}, err
		}
	} else {
		capability.Block = true // the least demanding: what could be created at all
	}
	params, err := ParseParams(req.GetParameters())
	return capability, params, err
}

func parseForCapacity(c *csipb.VolumeCapability) (Capability, error) {
	if c.GetAccessMode().GetMode() == csipb.VolumeCapability_AccessMode_UNKNOWN {
		return parseAccessType(c)
	}
	return ParseCapability(c)
}
