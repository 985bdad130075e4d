package node

import (
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

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
