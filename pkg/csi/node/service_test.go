package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// world is a node with one volume that is created and not staged.
type world struct {
	t        *testing.T
	host     *fakeHost
	attacher *fakeAttacher
	service  *Service
	stateDir string
	id       volume.ID
}

const (
	kubelet = "/var/lib/kubelet"
	staging = kubelet + "/plugins/kubernetes.io/csi/holdfast.io/abc/globalmount"
	target1 = kubelet + "/pods/1/volumes/kubernetes.io~csi/pvc/mount"
	target2 = kubelet + "/pods/2/volumes/kubernetes.io~csi/pvc/mount"
)

// newWorld makes a world whose volume was created with spec; the zero spec is a
// volume of 1 GiB with xfs.
func newWorld(t *testing.T, spec volume.Spec) *world {
	t.Helper()
	if spec.SizeBytes == 0 {
		spec.SizeBytes = 1 << 30
	}
	if spec.FSType == "" && !spec.Block {
		spec.FSType = "xfs"
	}
	w := &world{t: t, host: newFakeHost(), stateDir: t.TempDir(), id: volume.IDFor("v")}
	w.attacher = newFakeAttacher(w.host)
	w.attacher.volumes[w.id] = volume.Volume{ID: w.id, Spec: spec, Status: volume.Status{Phase: volume.PhaseReady, SizeBytes: spec.SizeBytes}}
	w.host.kinds[staging] = host.KindDirectory
	w.start()
	return w
}

// start makes the service, as a new process would.
func (w *world) start() {
	w.t.Helper()
	s, err := New(w.t.Context(), Options{Attacher: w.attacher, Host: w.host, StateDir: w.stateDir, KubeletDir: kubelet})
	if err != nil {
		w.t.Fatal(err)
	}
	w.service = s
}

func mountCap(fsType string, flags ...string) *csipb.VolumeCapability {
	return inMode(&csipb.VolumeCapability{
		AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}, csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
}

func blockCap() *csipb.VolumeCapability {
	return inMode(&csipb.VolumeCapability{
		AccessType: &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}},
	}, csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
}

func inMode(c *csipb.VolumeCapability, m csipb.VolumeCapability_AccessMode_Mode) *csipb.VolumeCapability {
	c.AccessMode = &csipb.VolumeCapability_AccessMode{Mode: m}
	return c
}

func (w *world) stage(c *csipb.VolumeCapability) error {
	_, err := w.service.NodeStageVolume(w.t.Context(), &csipb.NodeStageVolumeRequest{
		VolumeId: string(w.id), StagingTargetPath: staging, VolumeCapability: c,
	})
	return err
}

func (w *world) unstage() error {
	_, err := w.service.NodeUnstageVolume(w.t.Context(), &csipb.NodeUnstageVolumeRequest{VolumeId: string(w.id), StagingTargetPath: staging})
	return err
}

func (w *world) publish(target string, c *csipb.VolumeCapability) error {
	return w.publishAs(target, c, false)
}

func (w *world) publishAs(target string, c *csipb.VolumeCapability, readOnly bool) error {
	_, err := w.service.NodePublishVolume(w.t.Context(), &csipb.NodePublishVolumeRequest{
		VolumeId: string(w.id), StagingTargetPath: staging, TargetPath: target, VolumeCapability: c, Readonly: readOnly,
	})
	return err
}

func (w *world) unpublish(target string) error {
	_, err := w.service.NodeUnpublishVolume(w.t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: string(w.id), TargetPath: target})
	return err
}

// must fails the test at once on an error.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// nothingLeft checks that nothing of the volume is on the node.
func (w *world) nothingLeft() {
	w.t.Helper()
	if len(w.host.mounts) > 0 {
		w.t.Errorf("mounts are left: %+v", w.host.mounts)
	}
	if at, attached := w.attacher.Get(w.id); attached {
		w.t.Errorf("still attached: %+v", at)
	}
	files, err := os.ReadDir(filepath.Join(w.stateDir, "staged"))
	if err != nil || len(files) > 0 {
		w.t.Errorf("records are left: %v, %v", files, err)
	}
	for _, target := range []string{target1, target2} {
		if w.host.kinds[target] != "" {
			w.t.Errorf("%s is left", target)
		}
	}
}

func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return status.Code(rpcerr.ToStatus(err))
}

func (w *world) wantCode(what string, err error, code codes.Code) {
	w.t.Helper()
	if codeOf(err) != code {
		w.t.Errorf("%s: %s (%v), want %s", what, codeOf(err), err, code)
	}
}

func TestLifeOfAMountedVolume(t *testing.T) {
	w := newWorld(t, volume.Spec{Params: volume.Params{MkfsOptions: "-b size=1024"}})
	for range 3 { // every call may be repeated
		w.must(w.stage(mountCap("", "noatime")))
	}
	for range 3 {
		w.must(w.publish(target1, mountCap("xfs", "noatime")))
	}
	w.wantCode("unstage while published", w.unstage(), codes.FailedPrecondition)
	for range 3 {
		w.must(w.unpublish(target1))
	}
	for range 3 {
		w.must(w.unstage())
	}
	w.nothingLeft()
	want := []string{
		"get volume", "attach", "get volume", "set format formatting", "mkfs.xfs -b size=1024 /dev/loop0", "set format formatted",
		"mount /dev/loop0 at " + staging + " -t xfs -o noatime",
		"make " + target1, "bind " + staging + " to " + target1 + " rw", "unmount " + target1, "remove " + target1,
		"unmount " + staging, "detach",
	}
	for i := 0; i < len(w.host.log); i++ { // in this order, apart from repeats
		if len(want) > 0 && w.host.log[i] == want[0] {
			want = want[1:]
		}
	}
	if len(want) > 0 {
		t.Errorf("not done, or in another order: %q\nof: %q", want[0], w.host.log)
	}
	if mkfs := count(w.host.log, "mkfs"); mkfs != 1 {
		t.Errorf("mkfs ran %d times", mkfs)
	}

	w.must(w.stage(mountCap("")))
	if mkfs := count(w.host.log, "mkfs"); mkfs != 1 {
		t.Errorf("mkfs ran again at the second staging")
	}
}

func count(log []string, prefix string) int {
	n := 0
	for _, l := range log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func TestLifeOfABlockVolume(t *testing.T) {
	w := newWorld(t, volume.Spec{Block: true})
	for range 2 {
		w.must(w.stage(blockCap()))
		w.must(w.publish(target1, blockCap()))
	}
	if p := w.host.inspect(target1); p.Kind != host.KindMount || !p.Mounts[0].IsNode("/dev/loop0") || w.host.kinds[target1] != host.KindFile {
		t.Errorf("target: %+v", p)
	}
	w.wantCode("unstage while published", w.unstage(), codes.FailedPrecondition)
	w.wantCode("publish read-only", w.publishAs(target1, blockCap(), true), codes.FailedPrecondition)
	stats, err := w.service.NodeGetVolumeStats(t.Context(), &csipb.NodeGetVolumeStatsRequest{VolumeId: string(w.id), VolumePath: target1})
	if err != nil || len(stats.GetUsage()) != 1 || stats.GetUsage()[0].GetTotal() != 1<<30 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	w.must(w.unpublish(target1))
	w.must(w.unstage())
	w.nothingLeft()
	if count(w.host.log, "mkfs") > 0 {
		t.Error("a block volume was formatted")
	}

	t.Run("read-only", func(t *testing.T) {
		reader := inMode(blockCap(), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
		w.must(w.stage(reader))
		if w.host.access["/dev/loop1"] != host.ReadOnly {
			t.Error("the device can be written")
		}
		w.wantCode("publish for writing", w.publish(target1, blockCap()), codes.FailedPrecondition)
		w.must(w.publish(target1, reader))
		w.must(w.unpublish(target1))
		w.must(w.unstage())
		if w.host.access["/dev/loop1"] != host.ReadWrite {
			t.Error("the device's next user can't write")
		}
	})
}

func TestReadOnlyMounts(t *testing.T) {
	reader := inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	for name, c := range map[string]*csipb.VolumeCapability{"access mode": reader, "mount flag": mountCap("", "ro")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			w.must(w.stage(c))
			if top, _ := w.host.inspect(staging).Top(); !top.ReadOnly {
				t.Error("staged for writing")
			}
			w.wantCode("publish for writing", w.publish(target1, mountCap("")), codes.FailedPrecondition)
			w.must(w.publish(target1, c))
			w.must(w.publish(target1, c))
			if top, _ := w.host.inspect(target1).Top(); !top.ReadOnly {
				t.Error("published for writing")
			}
		})
	}
	t.Run("publication", func(t *testing.T) {
		w := newWorld(t, volume.Spec{})
		w.must(w.stage(mountCap("")))
		w.must(w.publishAs(target1, mountCap(""), true))
		w.must(w.publishAs(target1, mountCap(""), true))
		w.wantCode("then for writing", w.publish(target1, mountCap("")), codes.AlreadyExists)
		if top, _ := w.host.inspect(target1).Top(); !top.ReadOnly {
			t.Error("published for writing")
		}
	})
}

func TestSecondTarget(t *testing.T) {
	multi := func() *csipb.VolumeCapability {
		return inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)
	}
	single := inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	tests := map[string]struct {
		c    *csipb.VolumeCapability
		code codes.Code
	}{
		"SINGLE_NODE_WRITER":        {mountCap(""), codes.FailedPrecondition},
		"SINGLE_NODE_SINGLE_WRITER": {single, codes.FailedPrecondition},
		"SINGLE_NODE_READER_ONLY":   {inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), codes.FailedPrecondition},
		"SINGLE_NODE_MULTI_WRITER":  {multi(), codes.OK},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			w.must(w.stage(test.c))
			w.must(w.publish(target1, test.c))
			err := w.publish(target2, test.c)
			w.wantCode("second target", err, test.code)
			if err != nil && !strings.Contains(err.Error(), target1) {
				t.Errorf("doesn't say where it is published: %v", err)
			}
			w.must(w.unpublish(target1))
			w.must(w.publish(target2, test.c))
		})
	}
}

func TestHeldByAnotherNode(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.attacher.heldBy = "node-2"
	err := w.stage(mountCap(""))
	if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "node-2") {
		t.Errorf("%v", err)
	}
	w.nothingLeft()
	w.attacher.heldBy = ""
	w.must(w.stage(mountCap("")))
}

func TestStrictLocality(t *testing.T) {
	w := newWorld(t, volume.Spec{Params: volume.Params{Locality: volume.LocalityStrict, Replicas: 1}})
	v := w.attacher.volumes[w.id]
	v.Status.Replicas = []volume.Replica{{Node: "node-2", State: volume.InSync}}
	w.attacher.volumes[w.id] = v
	w.wantCode("stage away from the replica", w.stage(mountCap("")), codes.FailedPrecondition)
	w.nothingLeft()
	v.Status.Replicas[0].Node = "node-1"
	w.must(w.stage(mountCap("")))
}

func TestPending(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.must(w.stage(mountCap("")))
	unlock, err := w.service.locks.TryLock(w.id, "something")
	w.must(err)
	w.wantCode("stage", w.stage(mountCap("")), codes.Aborted)
	w.wantCode("unstage", w.unstage(), codes.Aborted)
	w.wantCode("publish", w.publish(target1, mountCap("")), codes.Aborted)
	w.wantCode("unpublish", w.unpublish(target1), codes.Aborted)
	_, err = w.service.NodeExpandVolume(t.Context(), &csipb.NodeExpandVolumeRequest{VolumeId: string(w.id), VolumePath: staging})
	w.wantCode("expand", err, codes.Aborted)
	_, err = w.service.NodeGetVolumeStats(t.Context(), &csipb.NodeGetVolumeStatsRequest{VolumeId: string(w.id), VolumePath: staging})
	w.wantCode("stats", err, codes.OK)
	unlock()
	w.must(w.unstage())
}

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

func TestNewRefusesARelativeKubeletDir(t *testing.T) {
	for _, dir := range []string{"kubelet", "/var/lib/../kubelet", "/var/lib/kubelet/"} {
		_, err := New(t.Context(), Options{Host: newFakeHost(), StateDir: t.TempDir(), KubeletDir: dir})
		if !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
