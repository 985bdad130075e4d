package csi

import (
	"context"
	"errors"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// DriverName is the name under which orchestrators know the driver.
const DriverName = "holdfast.io"

// Version is the build's version. The Makefile sets it with
// -ldflags "-X github.com/holdfast-csi/holdfast/pkg/csi.Version=v1.2.3".
var Version = "development"

// Identity is the CSI Identity service; both plugins offer it.
type Identity struct {
	csipb.UnimplementedIdentityServer
	ready func(context.Context) error
}

// NewIdentity makes an Identity. ready tells whether the plugin can serve calls
// now: ErrUnavailable means not yet or not at the moment, any other error that it
// is broken.
func NewIdentity(ready func(context.Context) error) *Identity { return &Identity{ready: ready} }

// GetPluginInfo names the plugin.
func (*Identity) GetPluginInfo(context.Context, *csipb.GetPluginInfoRequest) (*csipb.GetPluginInfoResponse, error) {
	return &csipb.GetPluginInfoResponse{Name: DriverName, VendorVersion: Version}, nil
}

// GetPluginCapabilities tells what the plugin as a whole can do.
func (*Identity) GetPluginCapabilities(context.Context, *csipb.GetPluginCapabilitiesRequest) (*csipb.GetPluginCapabilitiesResponse, error) {
	service := func(t csipb.PluginCapability_Service_Type) *csipb.PluginCapability {
		return &csipb.PluginCapability{Type: &csipb.PluginCapability_Service_{Service: &csipb.PluginCapability_Service{Type: t}}}
	}
	online := &csipb.PluginCapability_VolumeExpansion{Type: csipb.PluginCapability_VolumeExpansion_ONLINE}
	return &csipb.GetPluginCapabilitiesResponse{Capabilities: []*csipb.PluginCapability{
		service(csipb.PluginCapability_Service_CONTROLLER_SERVICE),
		service(csipb.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		{Type: &csipb.PluginCapability_VolumeExpansion_{VolumeExpansion: online}},
	}}, nil
}

// Probe tells whether calls can be served now. A store that can't be reached is
// "not ready"; FAILED_PRECONDITION means that something needs repair.
func (i *Identity) Probe(ctx context.Context, _ *csipb.ProbeRequest) (*csipb.ProbeResponse, error) {
	err := i.ready(ctx)
	switch {
	case err == nil:
		return &csipb.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
	case errors.Is(err, volume.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return &csipb.ProbeResponse{Ready: wrapperspb.Bool(false)}, nil
	}
	return nil, status.Error(codes.FailedPrecondition, err.Error())
}
