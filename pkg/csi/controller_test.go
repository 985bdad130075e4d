package csi

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return status.Code(toStatus(err))
}

func createRequest(name string, change func(*csipb.CreateVolumeRequest)) *csipb.CreateVolumeRequest {
	req := &csipb.CreateVolumeRequest{
		Name:               name,
		VolumeCapabilities: []*csipb.VolumeCapability{mountCap("")},
		CapacityRange:      &csipb.CapacityRange{RequiredBytes: 1 << 30},
	}
	if change != nil {
		change(req)
	}
	return req
}

func TestCreateVolumeRefusesBadInput(t *testing.T) {
	topologyOf := func(key, value string) *csipb.TopologyRequirement {
		return &csipb.TopologyRequirement{Requisite: []*csipb.Topology{{Segments: map[string]string{key: value}}}}
	}
	tests := map[string]struct {
		change func(*csipb.CreateVolumeRequest)
		code   codes.Code
		says   string
	}{
		"no name":           {func(r *csipb.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name"},
		"longest name":      {func(r *csipb.CreateVolumeRequest) { r.Name = strings.Repeat("n", 128) }, codes.OK, ""},
		"name too long":     {func(r *csipb.CreateVolumeRequest) { r.Name = strings.Repeat("n", 129) }, codes.InvalidArgument, "128"},
		"name with slash":   {func(r *csipb.CreateVolumeRequest) { r.Name = "a/b" }, codes.InvalidArgument, "name"},
		"name is dots":      {func(r *csipb.CreateVolumeRequest) { r.Name = ".." }, codes.InvalidArgument, "name"},
		"name climbs out":   {func(r *csipb.CreateVolumeRequest) { r.Name = "../../etc/passwd" }, codes.InvalidArgument, "name"},
		"name with nul":     {func(r *csipb.CreateVolumeRequest) { r.Name = "a\x00b" }, codes.InvalidArgument, "name"},
		"name with newline": {func(r *csipb.CreateVolumeRequest) { r.Name = "a\nb" }, codes.InvalidArgument, "name"},
		"unicode name":      {func(r *csipb.CreateVolumeRequest) { r.Name = "größe-データ-🗄" }, codes.OK, ""},
		"no capability":     {func(r *csipb.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "volume_capabilities"},
		"block and mount": {func(r *csipb.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csipb.VolumeCapability{mountCap(""), blockCap()}
		}, codes.InvalidArgument, "all block or all mount"},
		"many nodes": {func(r *csipb.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csipb.VolumeCapability{inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}
		}, codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		"negative size":     {func(r *csipb.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, codes.InvalidArgument, "required_bytes"},
		"limit too small":   {func(r *csipb.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 }, codes.InvalidArgument, "limit_bytes"},
		"too small for xfs": {func(r *csipb.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 300<<20 - 4096 }, codes.OutOfRange, "314572800"},
		"smallest xfs":      {func(r *csipb.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 300 << 20 }, codes.OK, ""},
		"too small for btrfs": {func(r *csipb.CreateVolumeRequest) {
			r.CapacityRange.RequiredBytes = 127 << 20
			r.VolumeCapabilities = []*csipb.VolumeCapability{mountCap("btrfs")}
		}, codes.OutOfRange, "134217728"},
		"too small for ext4": {func(r *csipb.CreateVolumeRequest) {
			r.CapacityRange.RequiredBytes = 15 << 20
			r.VolumeCapabilities = []*csipb.VolumeCapability{mountCap("ext4")}
		}, codes.OutOfRange, "16777216"},
		"smallest block": {func(r *csipb.CreateVolumeRequest) {
			r.CapacityRange.RequiredBytes = 1 << 20
			r.VolumeCapabilities = []*csipb.VolumeCapability{blockCap()}
		}, codes.OK, ""},
		"too small for block": {func(r *csipb.CreateVolumeRequest) {
			r.CapacityRange.RequiredBytes = 4096
			r.VolumeCapabilities = []*csipb.VolumeCapability{blockCap()}
		}, codes.OutOfRange, "1048576"},
		"unknown parameter": {func(r *csipb.CreateVolumeRequest) { r.Parameters = map[string]string{"x": "y"} }, codes.InvalidArgument, "replicas, spread"},
		"bad mkfs options": {func(r *csipb.CreateVolumeRequest) {
			r.Parameters = map[string]string{"mkfsOptions": "-l logdev=/dev/sda"}
		}, codes.InvalidArgument, "mkfsOptions"},
		"mkfs options of another filesystem": {func(r *csipb.CreateVolumeRequest) {
			r.Parameters = map[string]string{"mkfsOptions": "--nodesize 16k"}
		}, codes.InvalidArgument, "for xfs"},
		"mkfs options are not for block": {func(r *csipb.CreateVolumeRequest) {
			r.Parameters = map[string]string{"mkfsOptions": "--nodesize 16k"}
			r.VolumeCapabilities = []*csipb.VolumeCapability{blockCap()}
		}, codes.OK, ""},
		"mutable parameter": {func(r *csipb.CreateVolumeRequest) { r.MutableParameters = map[string]string{"x": "y"} }, codes.InvalidArgument, "MODIFY_VOLUME"},
		"from a snapshot": {func(r *csipb.CreateVolumeRequest) {
			r.VolumeContentSource = &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Snapshot{}}
		}, codes.InvalidArgument, "volume_content_source"},
		"from a volume": {func(r *csipb.CreateVolumeRequest) {
			r.VolumeContentSource = &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Volume{}}
		}, codes.InvalidArgument, "volume_content_source"},
		"empty topology": {func(r *csipb.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csipb.TopologyRequirement{Preferred: []*csipb.Topology{{}}}
		}, codes.InvalidArgument, "preferred"},
		"bad topology key":   {func(r *csipb.CreateVolumeRequest) { r.AccessibilityRequirements = topologyOf("a/b/c", "x") }, codes.InvalidArgument, "requisite"},
		"bad topology value": {func(r *csipb.CreateVolumeRequest) { r.AccessibilityRequirements = topologyOf("zone", "../x") }, codes.InvalidArgument, "requisite"},
		"secrets are ignored": {func(r *csipb.CreateVolumeRequest) {
			r.Secrets = map[string]string{"password": "x"}
		}, codes.OK, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fake := newFakeProvisioner()
			_, err := NewController(fake).CreateVolume(t.Context(), createRequest("volume", test.change))
			if codeOf(err) != test.code || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s (%v), want %s with %q", codeOf(err), err, test.code, test.says)
			}
			if err != nil && len(fake.volumes) > 0 {
				t.Error("something was created")
			}
		})
	}
}

func TestCreateVolume(t *testing.T) {
	fake := newFakeProvisioner()
	fake.topology = []map[string]string{{volume.TopologyHost: "node-0"}}
	c := NewController(fake)
	req := createRequest("volume", func(r *csipb.CreateVolumeRequest) {
		r.CapacityRange = &csipb.CapacityRange{RequiredBytes: 1<<30 - 5, LimitBytes: 2 << 30}
		r.Parameters = map[string]string{"replicas": "3"}
		r.AccessibilityRequirements = &csipb.TopologyRequirement{
			Requisite: []*csipb.Topology{{Segments: map[string]string{"zone": "a"}}, {Segments: map[string]string{"zone": "b"}}},
			Preferred: []*csipb.Topology{{Segments: map[string]string{"zone": "b"}}},
		}
	})
	first, err := c.CreateVolume(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	v := first.GetVolume()
	if v.GetVolumeId() != string(volume.IDFor("volume")) || v.GetCapacityBytes() != 1<<30 || len(v.GetAccessibleTopology()) != 1 {
		t.Errorf("volume: %v", v)
	}
	want := controller.CreateRequest{
		Spec: volume.Spec{
			Name: "volume", SizeBytes: 1 << 30, FSType: "xfs",
			Params: volume.Params{Replicas: 3, Locality: volume.LocalityPreferred, CacheMode: volume.CacheWriteback},
		},
		RequiredBytes: 1<<30 - 5, LimitBytes: 2 << 30,
		Requisite: []map[string]string{{"zone": "a"}, {"zone": "b"}},
		Preferred: []map[string]string{{"zone": "b"}},
	}
	if fmt.Sprint(fake.created) != fmt.Sprint(want) {
		t.Errorf("asked for %+v, want %+v", fake.created, want)
	}
	again, err := c.CreateVolume(t.Context(), req)
	if err != nil || again.GetVolume().GetVolumeId() != v.GetVolumeId() {
		t.Errorf("repeated: %v, %v", again, err)
	}
	req.Parameters["replicas"] = "2"
	if _, err := c.CreateVolume(t.Context(), req); codeOf(err) != codes.AlreadyExists {
		t.Errorf("same name, other parameters: %v", err)
	}
	fake.fail = fmt.Errorf("no pool has room: %w", volume.ErrNoSpace)
	if _, err := c.CreateVolume(t.Context(), createRequest("other", nil)); codeOf(err) != codes.ResourceExhausted {
		t.Errorf("pool full: %v", err)
	}
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

func TestControllerExpandVolume(t *testing.T) {
	const gib = 1 << 30
	tests := map[string]struct {
		required, limit int64
		capability      *csipb.VolumeCapability
		want            int64
		code            codes.Code
	}{
		"larger":                 {2 * gib, 0, nil, 2 * gib, codes.OK},
		"odd":                    {2*gib - 1, 0, nil, 2 * gib, codes.OK},
		"same":                   {gib, 0, mountCap("xfs"), gib, codes.OK},
		"smaller stays":          {1, 0, nil, gib, codes.OK},
		"limit only":             {0, 2 * gib, nil, gib, codes.OK},
		"limit below its size":   {0, gib - 4096, nil, 0, codes.OutOfRange},
		"nothing asked":          {0, 0, nil, 0, codes.InvalidArgument},
		"negative":               {-1, 0, nil, 0, codes.InvalidArgument},
		"limit below required":   {2 * gib, gib, nil, 0, codes.InvalidArgument},
		"no unit in between":     {gib + 1, gib + 2, nil, 0, codes.OutOfRange},
		"too large":              {1<<63 - 1, 0, nil, 0, codes.OutOfRange},
		"as a block device":      {2 * gib, 0, blockCap(), 0, codes.InvalidArgument},
		"for many nodes":         {2 * gib, 0, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), 0, codes.InvalidArgument},
		"with another fs":        {2 * gib, 0, mountCap("ext4"), 0, codes.InvalidArgument},
		"exact and a whole unit": {2 * gib, 2 * gib, nil, 2 * gib, codes.OK},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := NewController(newFakeProvisioner())
			v, err := c.CreateVolume(t.Context(), createRequest("volume", nil))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
				VolumeId: v.GetVolume().GetVolumeId(), VolumeCapability: test.capability,
				CapacityRange: &csipb.CapacityRange{RequiredBytes: test.required, LimitBytes: test.limit},
			})
			if codeOf(err) != test.code || resp.GetCapacityBytes() != test.want {
				t.Errorf("%v, %v; want %d, %s", resp, err, test.want, test.code)
			}
			if err == nil && !resp.GetNodeExpansionRequired() {
				t.Error("a filesystem needs the node's help to grow")
			}
		})
	}
}

func TestExpandOfABlockVolumeNeedsTheNodeOnlyWhileHeld(t *testing.T) {
	fake := newFakeProvisioner()
	c := NewController(fake)
	resp, err := c.CreateVolume(t.Context(), createRequest("v", func(r *csipb.CreateVolumeRequest) {
		r.VolumeCapabilities = []*csipb.VolumeCapability{blockCap()}
	}))
	if err != nil {
		t.Fatal(err)
	}
	id := volume.ID(resp.GetVolume().GetVolumeId())
	for _, holder := range []*volume.Holder{nil, {Node: "node-1"}} {
		v := fake.volumes[id]
		v.Status.Holder = holder
		fake.volumes[id] = v
		got, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
			VolumeId: string(id), CapacityRange: &csipb.CapacityRange{RequiredBytes: 2 << 30},
		})
		if err != nil || got.GetNodeExpansionRequired() != (holder != nil) {
			t.Errorf("holder %v: %v, %v", holder, got, err)
		}
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
