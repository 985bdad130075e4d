package csi

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return status.Code(toStatus(err))
}

func TestOneCallAtATimeChangesAVolume(t *testing.T) {
	fake := newFakeProvisioner()
	fake.entered, fake.proceed = make(chan struct{}), make(chan struct{})
	c := NewController(fake)
	done := make(chan error)
	go func() {
		_, err := c.CreateVolume(t.Context(), createRequest("volume", nil))
		done <- err
	}()
	<-fake.entered
	id := string(volume.IDFor("volume"))
	calls := map[string]func() error{
		"create": func() error { _, err := c.CreateVolume(t.Context(), createRequest("volume", nil)); return err },
		"delete": func() error {
			_, err := c.DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: id})
			return err
		},
		"expand": func() error {
			_, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
				VolumeId: id, CapacityRange: &csipb.CapacityRange{RequiredBytes: 2 << 30},
			})
			return err
		},
	}
	for name, call := range calls {
		if err := call(); codeOf(err) != codes.Aborted || !strings.Contains(err.Error(), "CreateVolume is under way") {
			t.Errorf("%s while creating: %v", name, err)
		}
	}
	if _, err := c.DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: string(volume.IDFor("other"))}); err != nil {
		t.Errorf("another volume: %v", err)
	}
	close(fake.proceed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := calls["delete"](); err != nil {
		t.Errorf("delete afterwards: %v", err)
	}
}

// badIDs are volume_id values and the code that every call but DeleteVolume gives.
var badIDs = map[string]codes.Code{
	"":                                     codes.InvalidArgument,
	"..":                                   codes.InvalidArgument,
	"../../etc/passwd":                     codes.InvalidArgument,
	"hv-../0123456789abcdef01":             codes.InvalidArgument,
	"a\x00b":                               codes.InvalidArgument,
	"a\\b":                                 codes.InvalidArgument,
	strings.Repeat("x", 129):               codes.InvalidArgument,
	"no-such-volume":                       codes.NotFound,
	"hv-0123":                              codes.NotFound,
	"hv-0123456789ABCDEF0123456789abcdef":  codes.NotFound,
	string(volume.IDFor("no such volume")): codes.NotFound,
}

func TestBadVolumeIDs(t *testing.T) {
	c := NewController(newFakeProvisioner())
	caps := []*csipb.VolumeCapability{mountCap("")}
	calls := map[string]func(id string) error{
		"delete": func(id string) error {
			_, err := c.DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: id})
			return err
		},
		"get": func(id string) error {
			_, err := c.ControllerGetVolume(t.Context(), &csipb.ControllerGetVolumeRequest{VolumeId: id})
			return err
		},
		"health": func(id string) error {
			_, err := c.ControllerGetVolumeHealth(t.Context(), &csipb.ControllerGetVolumeHealthRequest{VolumeId: id})
			return err
		},
		"validate": func(id string) error {
			_, err := c.ValidateVolumeCapabilities(t.Context(), &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: caps})
			return err
		},
		"expand": func(id string) error {
			_, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
				VolumeId: id, CapacityRange: &csipb.CapacityRange{RequiredBytes: 1},
			})
			return err
		},
	}
	for id, want := range badIDs {
		for name, call := range calls {
			want := want
			if name == "delete" && want == codes.NotFound {
				want = codes.OK
			}
			if err := call(id); codeOf(err) != want {
				t.Errorf("%s of %q: %s (%v), want %s", name, id, codeOf(err), err, want)
			}
		}
	}
}

func TestDeleteVolumeReportsAHolder(t *testing.T) {
	fake := newFakeProvisioner()
	fake.fail = fmt.Errorf("held by node-1: %w", volume.ErrPrecondition)
	_, err := NewController(fake).DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: string(volume.IDFor("v"))})
	if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "node-1") {
		t.Errorf("%v", err)
	}
}

func TestProbe(t *testing.T) {
	tests := map[string]struct {
		err   error
		ready bool
		code  codes.Code
	}{
		"ready":       {nil, true, codes.OK},
		"store away":  {fmt.Errorf("store: %w", volume.ErrUnavailable), false, codes.OK},
		"broken pool": {errors.New("no pool"), false, codes.FailedPrecondition},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fake := newFakeProvisioner()
			fake.fail = test.err
			resp, err := NewIdentity(fake.Ready).Probe(t.Context(), nil)
			if codeOf(err) != test.code || err == nil && resp.GetReady().GetValue() != test.ready {
				t.Errorf("%v, %v", resp, err)
			}
		})
	}
}
