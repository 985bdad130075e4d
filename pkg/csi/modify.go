package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ControllerModifyVolume changes what can be changed of a volume that exists: its
// number of replicas (Kubernetes: VolumeAttributesClass). It answers when that is
// recorded; the replicas follow, also while the volume is in use. By the
// specification a volume that can't have what is asked for is INVALID_ARGUMENT.
func (c *Controller) ControllerModifyVolume(ctx context.Context, req *csipb.ControllerModifyVolumeRequest) (*csipb.ControllerModifyVolumeResponse, error) {
	id, err := VolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if len(req.GetMutableParameters()) == 0 {
		return nil, volume.Invalid("mutable_parameters", "", "set: what of the volume shall change ("+strings.Join(mutableNames(), ", ")+")")
	}
	unlock, err := c.locks.TryLock(id, "ControllerModifyVolume")
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := c.volumes.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("modify volume %s: %w", id, err)
	}
	want := wanted(&v)
	if err := applyMutable(&want, req.GetMutableParameters()); err != nil {
		return nil, err
	}
	_, err = c.volumes.SetReplicas(ctx, id, want.Replicas)
	if errors.Is(err, volume.ErrPrecondition) {
		err = fmt.Errorf("%w: mutable_parameters.replicas: %w", volume.ErrInvalid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("modify volume %s: %w", id, err)
	}
	return &csipb.ControllerModifyVolumeResponse{}, nil
}

// wanted are the parameters as they are wanted now.
func wanted(v *volume.Volume) volume.Params {
	p := v.Spec.Params
	p.Replicas = v.Spec.WantedReplicas()
	return p
}

// applyMutable sets what is given of the mutable parameters, which take precedence
// over those of the StorageClass. An unknown one is ErrInvalid, with the known ones
// listed, and so is one that can't be changed.
func applyMutable(params *volume.Params, given map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		at := slices.IndexFunc(Parameters, func(p Parameter) bool { return p.Name == name && p.Mutable })
		if at < 0 {
			return volume.Invalid("mutable_parameters", name, "one of "+strings.Join(mutableNames(), ", "))
		}
		if p := Parameters[at]; !p.set(params, given[name]) {
			return volume.Invalid("mutable_parameters."+name, given[name], p.Allowed)
		}
	}
	return nil
}

func mutableNames() []string {
	var names []string
	for _, p := range Parameters {
		if p.Mutable {
			names = append(names, p.Name)
		}
	}
	return names
}
