package node

import (
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// badPaths are staging and target paths that are refused wherever they appear.
var badPaths = map[string]string{
	"empty":                  "",
	"relative":               "some/path",
	"root":                   "/",
	"dots":                   kubelet + "/pods/../../../../etc",
	"a dot":                  kubelet + "/./pods",
	"two slashes":            kubelet + "//pods",
	"nul":                    kubelet + "/po\x00ds",
	"newline":                kubelet + "/po\nds",
	"too long":               kubelet + "/" + strings.Repeat("x", 4096),
	"outside":                "/etc/cron.d",
	"a neighbour":            kubelet + "-other/x",
	"kubelet's own":          kubelet,
	"a link":                 kubelet + "/link",
	"a parent that is links": kubelet + "/escape/x",
}

// withLinks gives the world's host a link, and a path whose parent leads out of
// kubelet's directory.
func withLinks(w *world) *linkHost {
	w.host.kinds[kubelet+"/link"] = host.KindSymlink
	return &linkHost{fakeHost: w.host}
}

func TestBadPaths(t *testing.T) {
	for name, path := range badPaths {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			s := w.service
			w.must(w.stage(mountCap("")))
			s.host = withLinks(w)
			before := w.host.state()
			id := string(w.id)
			_, err := s.NodeStageVolume(t.Context(), &csipb.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: mountCap("")})
			w.wantCode("stage", err, codes.InvalidArgument)
			_, err = s.NodeUnstageVolume(t.Context(), &csipb.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path})
			w.wantCode("unstage", err, codes.InvalidArgument)
			_, err = s.NodePublishVolume(t.Context(), &csipb.NodePublishVolumeRequest{
				VolumeId: id, StagingTargetPath: staging, TargetPath: path, VolumeCapability: mountCap(""),
			})
			w.wantCode("publish", err, codes.InvalidArgument)
			_, err = s.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: path})
			w.wantCode("unpublish", err, codes.InvalidArgument)
			_, err = s.NodePublishVolume(t.Context(), &csipb.NodePublishVolumeRequest{
				VolumeId: id, StagingTargetPath: path, TargetPath: target1, VolumeCapability: mountCap(""),
			})
			want := codes.InvalidArgument
			if path == "" {
				want = codes.FailedPrecondition // the specification's own code for it
			}
			w.wantCode("publish from", err, want)
			if w.host.state() != before {
				t.Errorf("changed: %s\nbefore: %s", w.host.state(), before)
			}
		})
	}
}

func TestBadVolumeIDs(t *testing.T) {
	// The codes of staging and publishing, and those of taking away, for which a
	// volume that can't exist is done.
	tests := map[string]struct{ add, remove codes.Code }{
		"":                                {codes.InvalidArgument, codes.InvalidArgument},
		"../../../etc":                    {codes.InvalidArgument, codes.InvalidArgument},
		"hv-..":                           {codes.NotFound, codes.OK},
		"a\x00b":                          {codes.InvalidArgument, codes.InvalidArgument},
		strings.Repeat("x", 200):          {codes.InvalidArgument, codes.InvalidArgument},
		"no-such-volume":                  {codes.NotFound, codes.OK},
		string(volume.IDFor("no such v")): {codes.NotFound, codes.OK},
	}
	for id, test := range tests {
		w := newWorld(t, volume.Spec{})
		s := w.service
		_, err := s.NodeStageVolume(t.Context(), &csipb.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging, VolumeCapability: mountCap("")})
		w.wantCode("stage "+id, err, test.add)
		_, err = s.NodePublishVolume(t.Context(), &csipb.NodePublishVolumeRequest{
			VolumeId: id, StagingTargetPath: staging, TargetPath: target1, VolumeCapability: mountCap(""),
		})
		w.wantCode("publish "+id, err, test.add)
		_, err = s.NodeUnstageVolume(t.Context(), &csipb.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
		w.wantCode("unstage "+id, err, test.remove)
		_, err = s.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target1})
		w.wantCode("unpublish "+id, err, test.remove)
		w.nothingLeft()
	}
}

func TestStageRefusesWhatDoesNotFit(t *testing.T) {
	tests := map[string]struct {
		spec   volume.Spec
		c      *csipb.VolumeCapability
		change func(*world)
		code   codes.Code
	}{
		"no capability":      {volume.Spec{}, nil, nil, codes.InvalidArgument},
		"many nodes":         {volume.Spec{}, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), nil, codes.InvalidArgument},
		"unknown filesystem": {volume.Spec{}, mountCap("ntfs"), nil, codes.InvalidArgument},
		"bad flag":           {volume.Spec{}, mountCap("", "bind"), nil, codes.InvalidArgument},
		"another filesystem": {volume.Spec{}, mountCap("ext4"), nil, codes.FailedPrecondition},
		"as block":           {volume.Spec{}, blockCap(), nil, codes.FailedPrecondition},
		"block as mount":     {volume.Spec{Block: true}, mountCap(""), nil, codes.FailedPrecondition},
		"not created":        {volume.Spec{}, mountCap(""), func(w *world) { delete(w.attacher.volumes, w.id) }, codes.NotFound},
		"being created":      {volume.Spec{}, mountCap(""), func(w *world) { w.setPhase(volume.PhaseCreating) }, codes.Aborted},
		"being deleted":      {volume.Spec{}, mountCap(""), func(w *world) { w.setPhase(volume.PhaseDeleting) }, codes.NotFound},
		"no directory":       {volume.Spec{}, mountCap(""), func(w *world) { delete(w.host.kinds, staging) }, codes.InvalidArgument},
		"a file":             {volume.Spec{}, mountCap(""), func(w *world) { w.host.kinds[staging] = host.KindFile }, codes.InvalidArgument},
		"a link":             {volume.Spec{}, mountCap(""), func(w *world) { w.host.kinds[staging] = host.KindSymlink }, codes.InvalidArgument},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.spec)
			if test.change != nil {
				test.change(w)
			}
			w.wantCode("stage", w.stage(test.c), test.code)
			w.nothingLeft()
		})
	}
}

func (w *world) setPhase(p volume.Phase) {
	v := w.attacher.volumes[w.id]
	v.Status.Phase = p
	w.attacher.volumes[w.id] = v
}

func TestStageAgainOtherwise(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.must(w.stage(mountCap("")))
	w.host.kinds[staging+"2"] = host.KindDirectory
	before := w.host.state()
	w.wantCode("other flags", w.stage(mountCap("", "noatime")), codes.AlreadyExists)
	w.wantCode("other mode", w.stage(inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)), codes.AlreadyExists)
	_, err := w.service.NodeStageVolume(t.Context(), &csipb.NodeStageVolumeRequest{
		VolumeId: string(w.id), StagingTargetPath: staging + "2", VolumeCapability: mountCap(""),
	})
	w.wantCode("other path", err, codes.FailedPrecondition)
	_, err = w.service.NodeUnstageVolume(t.Context(), &csipb.NodeUnstageVolumeRequest{VolumeId: string(w.id), StagingTargetPath: staging + "2"})
	w.wantCode("unstage the other path", err, codes.FailedPrecondition)
	if w.host.state() != before {
		t.Errorf("changed: %s\nbefore: %s", w.host.state(), before)
	}
	w.must(w.stage(mountCap("xfs")))
}

// foreign is a mount that has nothing to do with the volume.
func foreign(path string) host.MountPoint {
	return host.MountPoint{Path: path, Source: "/dev/sda1", FSType: "ext4", Device: "8:1", Root: "/"}
}

func TestPathsMountedWithSomethingElse(t *testing.T) {
	t.Run("staging path", func(t *testing.T) {
		w := newWorld(t, volume.Spec{})
		w.host.mounts = append(w.host.mounts, foreign(staging))
		err := w.stage(mountCap(""))
		if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "/dev/sda1") {
			t.Errorf("stage: %v", err)
		}
		w.wantCode("unstage", w.unstage(), codes.FailedPrecondition)
		if len(w.host.mounts) != 1 || len(w.attacher.attached) > 0 {
			t.Errorf("mounts %v, attached %v", w.host.mounts, w.attacher.attached)
		}
	})
	t.Run("target path", func(t *testing.T) {
		w := newWorld(t, volume.Spec{})
		w.must(w.stage(mountCap("")))
		w.host.kinds[target1] = host.KindDirectory
		w.host.mounts = append(w.host.mounts, foreign(target1))
		err := w.publish(target1, mountCap(""))
		if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "/dev/sda1") {
			t.Errorf("publish: %v", err)
		}
		w.wantCode("unpublish", w.unpublish(target1), codes.FailedPrecondition)
		if len(w.host.mounts) != 2 {
			t.Errorf("mounts: %v", w.host.mounts)
		}
	})
}

func TestTargetPathThatIsSomethingElse(t *testing.T) {
	tests := map[string]struct {
		kind  host.Kind
		full  bool
		mount codes.Code
		block codes.Code
	}{
		"missing":         {"", false, codes.OK, codes.OK},
		"empty directory": {host.KindDirectory, false, codes.OK, codes.FailedPrecondition},
		"full directory":  {host.KindDirectory, true, codes.FailedPrecondition, codes.FailedPrecondition},
		"empty file":      {host.KindFile, false, codes.FailedPrecondition, codes.OK},
		"full file":       {host.KindFile, true, codes.FailedPrecondition, codes.FailedPrecondition},
		"special file":    {host.KindOther, false, codes.FailedPrecondition, codes.FailedPrecondition},
		"link":            {host.KindSymlink, false, codes.InvalidArgument, codes.InvalidArgument},
	}
	for name, test := range tests {
		for kind, c := range map[string]*csipb.VolumeCapability{"mount": mountCap(""), "block": blockCap()} {
			t.Run(name+", "+kind, func(t *testing.T) {
				w := newWorld(t, volume.Spec{Block: kind == "block"})
				w.must(w.stage(c))
				if test.kind != "" {
					w.host.kinds[target1] = test.kind
				}
				w.host.full[target1] = test.full
				want := test.mount
				if kind == "block" {
					want = test.block
				}
				w.wantCode("publish", w.publish(target1, c), want)
				if want == codes.OK {
					w.must(w.unpublish(target1))
					w.must(w.unstage())
					w.nothingLeft()
					return
				}
				if err := w.unpublish(target1); err != nil && test.kind != host.KindSymlink {
					t.Errorf("unpublish of what was never published: %v", err)
				}
				if w.host.kinds[target1] != test.kind {
					t.Error("what was there was removed")
				}
			})
		}
	}
}

func TestPublishRefusesWhatDoesNotFit(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.wantCode("not staged", w.publish(target1, mountCap("")), codes.FailedPrecondition)
	w.must(w.stage(mountCap("")))
	w.wantCode("no capability", w.publish(target1, nil), codes.InvalidArgument)
	w.wantCode("as block", w.publish(target1, blockCap()), codes.FailedPrecondition)
	w.wantCode("another filesystem", w.publish(target1, mountCap("ext4")), codes.FailedPrecondition)
	w.wantCode("many nodes", w.publish(target1, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)), codes.InvalidArgument)
	w.host.kinds[staging+"2"] = host.KindDirectory
	_, err := w.service.NodePublishVolume(t.Context(), &csipb.NodePublishVolumeRequest{
		VolumeId: string(w.id), StagingTargetPath: staging + "2", TargetPath: target1, VolumeCapability: mountCap(""),
	})
	w.wantCode("other staging path", err, codes.FailedPrecondition)
	w.must(w.publish(target1, mountCap("")))
	w.wantCode("same target, other mode", w.publish(target1, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)), codes.AlreadyExists)
	w.wantCode("same target, read-only", w.publishAs(target1, mountCap(""), true), codes.AlreadyExists)
	w.must(w.publish(target1, mountCap("")))
}
