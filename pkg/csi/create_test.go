package csi

import (
	"fmt"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

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
		"unknown mutable parameter": {func(r *csipb.CreateVolumeRequest) { r.MutableParameters = map[string]string{"x": "y"} }, codes.InvalidArgument, "one of replicas"},
		"immutable parameter":       {func(r *csipb.CreateVolumeRequest) { r.MutableParameters = map[string]string{"spread": "zone"} }, codes.InvalidArgument, "one of replicas"},
		"bad mutable parameter": {func(r *csipb.CreateVolumeRequest) { r.MutableParameters = map[string]string{"replicas": "6"} }, codes.InvalidArgument,
			"mutable_parameters.replicas"},
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
