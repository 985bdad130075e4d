package node

import (
	"errors"
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

func TestNewRefusesARelativeKubeletDir(t *testing.T) {
	for _, dir := range []string{"kubelet", "/var/lib/../kubelet", "/var/lib/kubelet/"} {
		_, err := New(t.Context(), Options{Host: newFakeHost(), StateDir: t.TempDir(), KubeletDir: dir})
		if !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
