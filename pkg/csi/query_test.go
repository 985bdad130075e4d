package csi

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// withVolumes makes a controller that has n volumes, and their sorted IDs.
func withVolumes(t *testing.T, n int) (*Controller, *fakeProvisioner, []string) {
	t.Helper()
	fake := newFakeProvisioner()
	c := NewController(fake)
	var ids []string
	for i := range n {
		resp, err := c.CreateVolume(t.Context(), createRequest(fmt.Sprintf("volume-%d", i), nil))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.GetVolume().GetVolumeId())
	}
	slices.Sort(ids)
	return c, fake, ids
}

func TestListVolumesByPages(t *testing.T) {
	c, fake, ids := withVolumes(t, 7)
	for _, size := range []int32{0, 1, 3, 7, 8} {
		var got []string
		token := ""
		for range 10 {
			resp, err := c.ListVolumes(t.Context(), &csipb.ListVolumesRequest{MaxEntries: size, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 && len(resp.GetEntries()) > int(size) {
				t.Errorf("%d entries on a page of %d", len(resp.GetEntries()), size)
			}
			for _, e := range resp.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeId())
			}
			if token = resp.GetNextToken(); token == "" {
				break
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("pages of %d: %v, want %v", size, got, ids)
		}
	}

	t.Run("the volume of the token is deleted", func(t *testing.T) {
		first, err := c.ListVolumes(t.Context(), &csipb.ListVolumesRequest{MaxEntries: 2})
		if err != nil {
			t.Fatal(err)
		}
		delete(fake.volumes, volume.ID(ids[0]))
		delete(fake.volumes, volume.ID(ids[1]))
		rest, err := c.ListVolumes(t.Context(), &csipb.ListVolumesRequest{StartingToken: first.GetNextToken()})
		if err != nil || len(rest.GetEntries()) != 5 || rest.GetEntries()[0].GetVolume().GetVolumeId() != ids[2] {
			t.Errorf("%v, %v", rest, err)
		}
	})
}

func TestBadPages(t *testing.T) {
	c, _, _ := withVolumes(t, 1)
	for name, test := range map[string]struct {
		page pageRequest
		code codes.Code
	}{
		"negative":      {pageRequest{max: -1}, codes.InvalidArgument},
		"a number":      {pageRequest{token: "3"}, codes.Aborted},
		"invalid-token": {pageRequest{token: "invalid-token"}, codes.Aborted},
		"a path":        {pageRequest{token: "../x"}, codes.Aborted},
	} {
		_, err := c.ListVolumes(t.Context(), &csipb.ListVolumesRequest{MaxEntries: test.page.max, StartingToken: test.page.token})
		if codeOf(err) != test.code {
			t.Errorf("ListVolumes, %s: %v, want %s", name, err, test.code)
		}
		_, err = c.ControllerListVolumeHealth(t.Context(), &csipb.ControllerListVolumeHealthRequest{MaxEntries: test.page.max, StartingToken: test.page.token})
		if codeOf(err) != test.code {
			t.Errorf("ControllerListVolumeHealth, %s: %v, want %s", name, err, test.code)
		}
	}
}

func TestControllerGetVolume(t *testing.T) {
	c, fake, ids := withVolumes(t, 1)
	v := fake.volumes[volume.ID(ids[0])]
	v.Status.Holder = &volume.Holder{Node: "node-1"}
	fake.volumes[v.ID] = v
	resp, err := c.ControllerGetVolume(t.Context(), &csipb.ControllerGetVolumeRequest{VolumeId: ids[0]})
	if err != nil || resp.GetVolume().GetCapacityBytes() != 1<<30 || !slices.Equal(resp.GetStatus().GetPublishedNodeIds(), []string{"node-1"}) {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	c, _, ids := withVolumes(t, 1)
	tests := map[string]struct {
		change    func(*csipb.ValidateVolumeCapabilitiesRequest)
		confirmed bool
		says      string
	}{
		"as created":       {func(*csipb.ValidateVolumeCapabilitiesRequest) {}, true, ""},
		"named filesystem": {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.VolumeCapabilities[0] = mountCap("xfs") }, true, ""},
		"as a reader": {func(r *csipb.ValidateVolumeCapabilitiesRequest) {
			r.VolumeCapabilities[0] = inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
		}, true, ""},
		"as block":           {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.VolumeCapabilities[0] = blockCap() }, false, "block device"},
		"another filesystem": {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.VolumeCapabilities[0] = mountCap("ext4") }, false, "ext4"},
		"many nodes": {func(r *csipb.ValidateVolumeCapabilitiesRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY))
		}, false, "MULTI_NODE_READER_ONLY"},
		"no access type":     {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.VolumeCapabilities[0].AccessType = nil }, false, "block or mount"},
		"same parameters":    {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.Parameters = map[string]string{"replicas": "2"} }, true, ""},
		"other parameters":   {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.Parameters = map[string]string{"replicas": "3"} }, false, "other parameters"},
		"unknown parameters": {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.Parameters = map[string]string{"x": "3"} }, false, "parameters"},
		"same mutable": {func(r *csipb.ValidateVolumeCapabilitiesRequest) {
			r.MutableParameters = map[string]string{"replicas": "2"}
		}, true, ""},
		"other mutable": {func(r *csipb.ValidateVolumeCapabilitiesRequest) {
			r.MutableParameters = map[string]string{"replicas": "3"}
		}, false, "mutable"},
		"unknown mutable": {func(r *csipb.ValidateVolumeCapabilitiesRequest) { r.MutableParameters = map[string]string{"x": "3"} }, false, "one of replicas"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			req := &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: ids[0], VolumeCapabilities: []*csipb.VolumeCapability{mountCap("")}}
			test.change(req)
			resp, err := c.ValidateVolumeCapabilities(t.Context(), req)
			if err != nil || (resp.GetConfirmed() != nil) != test.confirmed || !strings.Contains(resp.GetMessage(), test.says) {
				t.Errorf("%v, %v", resp, err)
			}
			if test.confirmed && len(resp.GetConfirmed().GetVolumeCapabilities()) != len(req.GetVolumeCapabilities()) {
				t.Error("not all capabilities are confirmed")
			}
		})
	}
	_, err := c.ValidateVolumeCapabilities(t.Context(), &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: ids[0]})
	if codeOf(err) != codes.InvalidArgument {
		t.Errorf("no capabilities: %v", err)
	}
}

func TestGetCapacity(t *testing.T) {
	const mib, gib = int64(1 << 20), int64(1 << 30)
	unknownMode := mountCap("")
	unknownMode.AccessMode = &csipb.VolumeCapability_AccessMode{}
	tests := map[string]struct {
		req                         *csipb.GetCapacityRequest
		room                        controller.Capacity
		available, maximum, minimum int64
		code                        codes.Code
	}{
		"anything":        {&csipb.GetCapacityRequest{}, controller.Capacity{Available: 9 * gib, Maximum: 5 * gib, Minimum: mib}, 9 * gib, 5 * gib, mib, codes.OK},
		"mounted":         {&csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{mountCap("")}}, controller.Capacity{Available: 9 * gib, Maximum: 5 * gib}, 9 * gib, 5 * gib, 300 * mib, codes.OK},
		"no access mode":  {&csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{unknownMode}}, controller.Capacity{Available: 9 * gib, Maximum: 5 * gib}, 9 * gib, 5 * gib, 300 * mib, codes.OK},
		"no room for xfs": {&csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{mountCap("xfs")}}, controller.Capacity{Available: 200 * mib, Maximum: 200 * mib}, 0, 0, 300 * mib, codes.OK},
		"room for ext4":   {&csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{mountCap("ext4")}}, controller.Capacity{Available: 200 * mib, Maximum: 200 * mib}, 200 * mib, 200 * mib, 16 * mib, codes.OK},
		"more than full":  {&csipb.GetCapacityRequest{}, controller.Capacity{Available: -5, Maximum: -5}, 0, 0, mib, codes.OK},
		"bad parameter":   {&csipb.GetCapacityRequest{Parameters: map[string]string{"x": "y"}}, controller.Capacity{}, 0, 0, 0, codes.InvalidArgument},
		"bad mode":        {&csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}}, controller.Capacity{}, 0, 0, 0, codes.InvalidArgument},
		"bad topology":    {&csipb.GetCapacityRequest{AccessibleTopology: &csipb.Topology{}}, controller.Capacity{}, 0, 0, 0, codes.InvalidArgument},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fake := newFakeProvisioner()
			fake.room = test.room
			resp, err := NewController(fake).GetCapacity(t.Context(), test.req)
			if codeOf(err) != test.code {
				t.Fatalf("%v, want %s", err, test.code)
			}
			if err == nil && (resp.GetAvailableCapacity() != test.available || resp.GetMaximumVolumeSize().GetValue() != test.maximum ||
				resp.GetMinimumVolumeSize().GetValue() != test.minimum) {
				t.Errorf("%v", resp)
			}
		})
	}

	fake := newFakeProvisioner()
	_, err := NewController(fake).GetCapacity(t.Context(), &csipb.GetCapacityRequest{
		Parameters:         map[string]string{"replicas": "3", "pool": "fast"},
		AccessibleTopology: &csipb.Topology{Segments: map[string]string{"zone": "a"}},
	})
	if err != nil || fake.asked.Topology["zone"] != "a" || fake.asked.Params.Replicas != 3 || fake.asked.Params.PoolSelector != "fast" {
		t.Errorf("asked %+v, %v", fake.asked, err)
	}
}

func TestHealth(t *testing.T) {
	type entries = map[string]csipb.VolumeHealthErrorType // by reason
	sick := func(change func(*volume.Volume)) volume.Volume {
		v := volume.Volume{ID: volume.IDFor("v"), Spec: volume.Spec{Params: volume.Params{Replicas: 2}}}
		v.Status = volume.Status{Phase: volume.PhaseReady, Replicas: []volume.Replica{
			{Node: "a", State: volume.InSync}, {Node: "b", State: volume.InSync},
		}}
		change(&v)
		return v
	}
	tests := map[string]struct {
		v    volume.Volume
		want entries
	}{
		"healthy": {sick(func(*volume.Volume) {}), entries{}},
		"a condition that doesn't hold": {sick(func(v *volume.Volume) {
			v.SetCondition(volume.Condition{Type: volume.ConditionDegraded, Reason: "WasAway"})
		}), entries{}},
		"a replica is away": {sick(func(v *volume.Volume) {
			v.Status.Replicas[1] = volume.Replica{Node: "b", State: volume.Outdated, Reason: "Timeout"}
		}), entries{"ReplicasNotInSync": csipb.VolumeHealthErrorType_DEGRADED}},
		"a replica is away, and the mirror said so": {sick(func(v *volume.Volume) {
			v.Status.Replicas[1].State = volume.Outdated
			v.SetCondition(volume.Condition{Type: volume.ConditionDegraded, Status: true, Reason: "ReplicaOutdated"})
		}), entries{"ReplicaOutdated": csipb.VolumeHealthErrorType_DEGRADED}},
		"no replica": {sick(func(v *volume.Volume) {
			v.Status.Replicas[0].State, v.Status.Replicas[1].State = volume.Failed, volume.Outdated
		}), entries{"NoReplicaInSync": csipb.VolumeHealthErrorType_INACCESSIBLE}},
		"full pool": {sick(func(v *volume.Volume) {
			v.SetCondition(volume.Condition{Type: volume.ConditionWritesPaused, Status: true, Reason: "PoolFull"})
		}), entries{"PoolFull": csipb.VolumeHealthErrorType_DEGRADED}},
		"faulty, no reason": {sick(func(v *volume.Volume) {
			v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true})
		}), entries{"Faulty": csipb.VolumeHealthErrorType_INACCESSIBLE}},
		"data lost": {sick(func(v *volume.Volume) {
			v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: "DataLoss"})
		}), entries{"DataLoss": csipb.VolumeHealthErrorType_DATA_LOSS}},
	}
	fake := newFakeProvisioner()
	c := NewController(fake)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fake.volumes = map[volume.ID]volume.Volume{test.v.ID: test.v}
			resp, err := c.ControllerGetVolumeHealth(t.Context(), &csipb.ControllerGetVolumeHealthRequest{VolumeId: string(test.v.ID)})
			if err != nil || resp.GetVolumeHealth().GetVolumeId() != string(test.v.ID) {
				t.Fatalf("%v, %v", resp, err)
			}
			got := entries{}
			for _, e := range resp.GetVolumeHealth().GetHealthStatuses() {
				got[e.GetReason()] = e.GetStatus()
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) || len(got) != len(resp.GetVolumeHealth().GetHealthStatuses()) {
				t.Errorf("%v, want %v", resp, test.want)
			}
			list, err := c.ControllerListVolumeHealth(t.Context(), &csipb.ControllerListVolumeHealthRequest{})
			if err != nil || (len(list.GetEntries()) == 1) != (len(test.want) > 0) {
				t.Errorf("list: %v, %v", list, err)
			}
		})
	}
}
