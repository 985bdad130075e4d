package node

import (
	"fmt"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestNodeInfo(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	info, err := w.service.NodeGetInfo(t.Context(), nil)
	if err != nil || info.GetNodeId() != "node-1" || info.GetMaxVolumesPerNode() != 100 ||
		info.GetAccessibleTopology().GetSegments()[volume.TopologyHost] != "node-1" {
		t.Errorf("%v, %v", info, err)
	}
	caps, err := w.service.NodeGetCapabilities(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range caps.GetCapabilities() {
		if c.GetRpc().GetType() == csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP {
			t.Error("VOLUME_MOUNT_GROUP is claimed")
		}
	}
}

func TestStats(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	ask := func(id, path string) (*csipb.NodeGetVolumeStatsResponse, error) {
		return w.service.NodeGetVolumeStats(t.Context(), &csipb.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	}
	_, err := ask(string(w.id), staging)
	w.wantCode("before staging", err, codes.NotFound)
	w.must(w.stage(mountCap("")))
	w.must(w.publish(target1, mountCap("")))
	for _, path := range []string{staging, target1, target1 + "/"} {
		if resp, err := ask(string(w.id), path); err != nil || len(resp.GetUsage()) != 2 {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
	}
	for name, test := range map[string]struct {
		id, path string
		code     codes.Code
	}{
		"no id":         {"", staging, codes.InvalidArgument},
		"no path":       {string(w.id), "", codes.InvalidArgument},
		"no volume":     {"no-such-volume", staging, codes.NotFound},
		"relative path": {string(w.id), "some/path", codes.NotFound},
		"other path":    {string(w.id), target2, codes.NotFound},
		"climbing out":  {string(w.id), staging + "/../../../../../../../etc", codes.NotFound},
	} {
		_, err := ask(test.id, test.path)
		w.wantCode(name, err, test.code)
	}
}

func TestVolumeHealth(t *testing.T) {
	w := newWorld(t, volume.Spec{Params: volume.Params{Replicas: 1}})
	reasons := func() string {
		t.Helper()
		resp, err := w.service.NodeGetVolumeHealth(t.Context(), &csipb.NodeGetVolumeHealthRequest{VolumeId: string(w.id)})
		w.must(err)
		var all []string
		for _, e := range resp.GetVolumeHealth().GetHealthStatuses() {
			all = append(all, e.GetStatus().String()+" "+e.GetReason())
		}
		return strings.Join(all, ", ")
	}
	v := w.attacher.volumes[w.id]
	v.Status.Replicas = []volume.Replica{{Node: "node-1", State: volume.InSync}}
	w.attacher.volumes[w.id] = v
	if got := reasons(); got != "" {
		t.Errorf("not staged: %s", got)
	}
	w.must(w.stage(mountCap("")))
	if got := reasons(); got != "" {
		t.Errorf("staged: %s", got)
	}
	v = w.attacher.volumes[w.id]
	v.SetCondition(volume.Condition{Type: volume.ConditionWritesPaused, Status: true, Reason: "PoolFull", Message: "no room"})
	w.attacher.volumes[w.id] = v
	if got := reasons(); got != "DEGRADED PoolFull" {
		t.Errorf("pool full: %s", got)
	}
	w.attacher.die(w.id)
	if got := reasons(); got != "INACCESSIBLE NotServing, DEGRADED PoolFull" {
		t.Errorf("dead: %s", got)
	}
	_, err := w.service.NodeGetVolumeHealth(t.Context(), &csipb.NodeGetVolumeHealthRequest{VolumeId: "no-such-volume"})
	w.wantCode("no volume", err, codes.NotFound)
	_, err = w.service.NodeGetVolumeHealth(t.Context(), &csipb.NodeGetVolumeHealthRequest{})
	w.wantCode("no id", err, codes.InvalidArgument)
}

func TestStorageHealth(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.attacher.pools = []volume.Pool{
		{Name: "good", Healthy: true, Free: 10, Reserve: 1},
		{Name: "broken", Message: "directory is gone"}, {Name: "also", Message: "read-only"},
		{Name: "full", Healthy: true, Free: 1, Reserve: 1},
	}
	resp, err := w.service.NodeGetStorageHealth(t.Context(), nil)
	if err != nil || len(resp.GetBackendHealth()) != 2 {
		t.Fatalf("%v, %v", resp, err)
	}
	text := fmt.Sprint(resp.GetBackendHealth())
	for _, part := range []string{"PoolUnhealthy", "broken: directory is gone; also: read-only", "PoolFull", "full: 1 bytes free"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in %s", part, text)
		}
	}
}
