package node

import (
	"errors"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestDecideFormat(t *testing.T) {
	never := volume.Format{}
	begun := volume.Format{State: volume.FormatBegun, FSType: "xfs"}
	done := volume.Format{State: volume.FormatDone, FSType: "xfs"}
	blank, xfs, ext4, other := host.Content{Blank: true}, host.Content{FSType: "xfs"}, host.Content{FSType: "ext4"}, host.Content{Other: "data"}
	tests := []struct {
		name    string
		format  volume.Format
		content host.Content
		want    string
		action  formatAction
		fails   error
	}{
		{"never, blank", never, blank, "xfs", makeIt, nil},
		{"never, xfs", never, xfs, "xfs", 0, volume.ErrPrecondition},
		{"never, ext4", never, ext4, "xfs", 0, volume.ErrPrecondition},
		{"never, other data", never, other, "xfs", 0, volume.ErrPrecondition},
		{"formatting, blank", begun, blank, "xfs", makeIt, nil},
		{"formatting, xfs", begun, xfs, "xfs", checkIt, nil},
		{"formatting, ext4", begun, ext4, "xfs", 0, volume.ErrPrecondition},
		{"formatting, other data", begun, other, "xfs", remakeIt, nil},
		{"formatted, xfs", done, xfs, "xfs", useIt, nil},
		{"formatted, xfs, ext4 wanted", done, xfs, "ext4", 0, volume.ErrPrecondition},
		{"formatted, blank", done, blank, "xfs", 0, volume.ErrCorrupt},
		{"formatted, ext4", done, ext4, "xfs", 0, volume.ErrCorrupt},
		{"formatted, ext4, ext4 wanted", done, ext4, "ext4", 0, volume.ErrCorrupt},
		{"formatted, other data", done, other, "xfs", 0, volume.ErrCorrupt},
		{"state of a newer version", volume.Format{State: "encrypted"}, blank, "xfs", 0, volume.ErrFormatVersion},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			action, err := decideFormat(test.format, test.content, test.want)
			if action != test.action || !errors.Is(err, test.fails) || (err != nil) != (test.fails != nil) {
				t.Errorf("%d, %v; want %d, %v", action, err, test.action, test.fails)
			}
		})
	}
}

func TestUnfinishedFormat(t *testing.T) {
	tests := map[string]struct {
		content *host.Content // nil: blank
		mkfs    int
		code    codes.Code
	}{
		"blank":              {nil, 1, codes.OK},
		"complete":           {&host.Content{FSType: "xfs", FSBytes: 1 << 30}, 0, codes.OK},
		"half":               {&host.Content{Other: "an incomplete filesystem of type xfs"}, 1, codes.OK},
		"another filesystem": {&host.Content{FSType: "ext4"}, 0, codes.FailedPrecondition},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			v := w.attacher.volumes[w.id]
			v.Status.Format = volume.Format{State: volume.FormatBegun, FSType: "xfs"}
			w.attacher.volumes[w.id] = v
			if test.content != nil {
				w.host.content[w.id] = *test.content
			}
			w.wantCode("stage", w.stage(mountCap("")), test.code)
			if n := count(w.host.log, "mkfs"); n != test.mkfs {
				t.Errorf("mkfs ran %d times, want %d", n, test.mkfs)
			}
			if test.code != codes.OK {
				w.nothingLeft()
				return
			}
			if got := w.attacher.volumes[w.id].Status.Format; got != (volume.Format{State: volume.FormatDone, FSType: "xfs"}) {
				t.Errorf("recorded: %+v", got)
			}
		})
	}
}

func TestUnknownDataIsNeverFormatted(t *testing.T) {
	for name, content := range map[string]host.Content{
		"filesystem": {FSType: "xfs"}, "other filesystem": {FSType: "ntfs"}, "partitions": {Other: "a partition table"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			w.host.content[w.id] = content
			err := w.stage(mountCap(""))
			if codeOf(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), content.String()) {
				t.Errorf("%v", err)
			}
			w.nothingLeft()
			if w.host.content[w.id] != content {
				t.Error("the data was overwritten")
			}
		})
	}
}

func TestGrowAtStaging(t *testing.T) {
	tests := map[string]struct {
		fsType string
		noGrow bool
		want   []string // steps after the mount
	}{
		"xfs":                           {"xfs", false, []string{"grow /dev/loop0 at " + staging}},
		"xfs that can't":                {"xfs", true, nil},
		"ext4":                          {"ext4", false, []string{"grow /dev/loop0 at " + staging}},
		"ext4 without CAP_SYS_RESOURCE": {"ext4", true, []string{"unmount " + staging, "grow /dev/loop0 unmounted", "mount /dev/loop0 at " + staging + " -t ext4 -o "}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{FSType: test.fsType, SizeBytes: 2 << 30})
			v := w.attacher.volumes[w.id]
			v.Status.Format = volume.Format{State: volume.FormatDone, FSType: test.fsType}
			w.attacher.volumes[w.id] = v
			w.host.content[w.id] = host.Content{FSType: test.fsType, FSBytes: 1 << 30}
			w.host.noGrow = test.noGrow
			w.must(w.stage(mountCap("")))
			mounted := 0
			for i, l := range w.host.log {
				if strings.HasPrefix(l, "mount ") {
					mounted = i + 1
					break
				}
			}
			if got := strings.Join(w.host.log[mounted:], "; "); got != strings.Join(test.want, "; ") {
				t.Errorf("after the mount: %q, want %q", got, test.want)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	const gib = 1 << 30
	expand := func(w *world, change func(*csipb.NodeExpandVolumeRequest)) (int64, error) {
		req := &csipb.NodeExpandVolumeRequest{VolumeId: string(w.id), VolumePath: target1}
		if change != nil {
			change(req)
		}
		resp, err := w.service.NodeExpandVolume(t.Context(), req)
		return resp.GetCapacityBytes(), err
	}
	grown := func(w *world) {
		v := w.attacher.volumes[w.id]
		v.Spec.SizeBytes = 2 * gib
		w.attacher.volumes[w.id] = v
	}
	for name, c := range map[string]*csipb.VolumeCapability{"mounted": mountCap(""), "block": blockCap()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{Block: c.GetBlock() != nil})
			w.must(w.stage(c))
			w.must(w.publish(target1, c))
			grown(w)
			for range 2 {
				if size, err := expand(w, nil); err != nil || size != 2*gib {
					t.Errorf("%d, %v", size, err)
				}
			}
			if c.GetBlock() == nil && w.host.content[w.id].FSBytes != 2*gib {
				t.Errorf("filesystem: %+v", w.host.content[w.id])
			}
		})
	}
	bad := map[string]struct {
		change func(*csipb.NodeExpandVolumeRequest)
		code   codes.Code
	}{
		"no id":           {func(r *csipb.NodeExpandVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument},
		"no volume":       {func(r *csipb.NodeExpandVolumeRequest) { r.VolumeId = "no-such-volume" }, codes.NotFound},
		"no path":         {func(r *csipb.NodeExpandVolumeRequest) { r.VolumePath = "" }, codes.InvalidArgument},
		"relative path":   {func(r *csipb.NodeExpandVolumeRequest) { r.VolumePath = "x" }, codes.NotFound},
		"other path":      {func(r *csipb.NodeExpandVolumeRequest) { r.VolumePath = target2 }, codes.NotFound},
		"negative":        {func(r *csipb.NodeExpandVolumeRequest) { r.CapacityRange = &csipb.CapacityRange{RequiredBytes: -1} }, codes.InvalidArgument},
		"more than it is": {func(r *csipb.NodeExpandVolumeRequest) { r.CapacityRange = &csipb.CapacityRange{RequiredBytes: 3 * gib} }, codes.OutOfRange},
		"limit too small": {func(r *csipb.NodeExpandVolumeRequest) { r.CapacityRange = &csipb.CapacityRange{LimitBytes: gib} }, codes.OutOfRange},
		"as block":        {func(r *csipb.NodeExpandVolumeRequest) { r.VolumeCapability = blockCap() }, codes.InvalidArgument},
		"for many nodes": {func(r *csipb.NodeExpandVolumeRequest) {
			r.VolumeCapability = inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, codes.InvalidArgument},
	}
	for name, test := range bad {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			w.must(w.stage(mountCap("")))
			w.must(w.publish(target1, mountCap("")))
			grown(w)
			_, err := expand(w, test.change)
			w.wantCode("expand", err, test.code)
		})
	}
	t.Run("read-only", func(t *testing.T) {
		w := newWorld(t, volume.Spec{})
		w.must(w.stage(mountCap("", "ro")))
		_, err := expand(w, func(r *csipb.NodeExpandVolumeRequest) { r.VolumePath = staging })
		w.wantCode("expand", err, codes.FailedPrecondition)
	})
	t.Run("not staged", func(t *testing.T) {
		w := newWorld(t, volume.Spec{})
		_, err := expand(w, nil)
		w.wantCode("expand", err, codes.NotFound)
	})
}
