package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestXFSFeaturesMountOnOldKernels(t *testing.T) {
	h := newHost(t, "mkfs.xfs", "xfs_db")
	ctx := testContext(t)
	device, _ := loop(t, 320<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs"}); err != nil {
		t.Fatal(err)
	}
	out, err := h.run(ctx, "xfs_db", "-r", "-c", "version", device)
	if err != nil {
		t.Fatal(err)
	}
	for _, newer := range []string{"NREXT64", "PARENT", "EXCHANGE", "METADIR"} {
		if strings.Contains(out, newer) {
			t.Errorf("a filesystem for Linux %s has %s: %s", OldestKernel, newer, out)
		}
	}
	for _, wanted := range []string{"CRC", "REFLINK", "BIGTIME", "INOBTCNT", "FINOBT"} {
		if !strings.Contains(out, wanted) {
			t.Errorf("%s is missing: %s", wanted, out)
		}
	}
}

func TestExt4FeaturesMountOnOldKernels(t *testing.T) {
	h := newHost(t, "mkfs.ext4", "dumpe2fs")
	ctx := testContext(t)
	device, _ := loop(t, 32<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4", Arguments: []string{"-O", "^huge_file", "-E", "stride=2"}}); err != nil {
		t.Fatal(err)
	}
	out, err := h.run(ctx, "dumpe2fs", "-h", device)
	if err != nil {
		t.Fatal(err)
	}
	_, features, _ := strings.Cut(out, "Filesystem features:")
	features, _, _ = strings.Cut(features, "\n")
	for _, newer := range []string{"orphan_file", "metadata_csum_seed", "huge_file"} {
		if strings.Contains(features, newer) {
			t.Errorf("has %s: %s", newer, features)
		}
	}
	if !strings.Contains(features, "metadata_csum") || !strings.Contains(features, "has_journal") {
		t.Errorf("features: %s", features)
	}
}

func TestMkfsArguments(t *testing.T) {
	knowsAll := mkfsFeatures{
		xfs:   "-m crc=0|1,finobt=0|1,rmapbt=0|1,reflink=0|1,inobtcount=0|1,bigtime=0|1,metadir=0|1 -i sparse=0|1,nrext64=0|1,exchange=0|1 -n parent=0|1",
		btrfs: "block-group-tree",
	}
	tests := map[string]struct {
		known   mkfsFeatures
		options FormatOptions
		want    string
	}{
		"xfs, newest tools": {knowsAll, FormatOptions{FSType: "xfs"},
			"-q -K -m crc=1 -m finobt=1 -m reflink=1 -m rmapbt=0 -m bigtime=1 -m inobtcount=1 -i sparse=1 -i nrext64=0 -i exchange=0 -n parent=0 -m metadir=0"},
		"xfs, old tools":      {mkfsFeatures{xfs: "crc=0|1,finobt=0|1"}, FormatOptions{FSType: "xfs"}, "-q -K -m crc=1 -m finobt=1"},
		"xfs, caller's key":   {mkfsFeatures{xfs: "crc= rmapbt="}, FormatOptions{FSType: "xfs", Arguments: []string{"-m", "rmapbt=1"}}, "-q -K -m crc=1 -m rmapbt=1"},
		"xfs, overwriting":    {mkfsFeatures{}, FormatOptions{FSType: "xfs", Overwrite: true}, "-q -K -f"},
		"btrfs, newest tools": {knowsAll, FormatOptions{FSType: "btrfs"}, "-q -K -O ^block-group-tree"},
		"ext4": {knowsAll, FormatOptions{FSType: "ext4", Arguments: []string{"-b", "1024", "-E", "stride=2", "-O", "^64bit"}},
			"-q -F -m 0 -O " + ext4Features + ",^64bit -E nodiscard,stride=2 -b 1024"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			switch test.options.FSType {
			case "xfs":
				got = xfsArguments(test.known, test.options)
			case "ext4":
				got = ext4Arguments(test.options)
			default:
				got = btrfsArguments(test.known, test.options)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("arguments:\n %s\nwant:\n %s", strings.Join(got, " "), test.want)
			}
		})
	}
}

func TestFormatNeedsOverwriteOnAnyOtherFilesystem(t *testing.T) {
	h := newHost(t, "mkfs.xfs", "mkfs.ext4")
	ctx := testContext(t)
	device, _ := loop(t, 320<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs"}); err == nil {
		t.Error("mkfs.xfs overwrote an ext4 filesystem")
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs", Overwrite: true}); err != nil {
		t.Error(err)
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ntfs"}); !errors.Is(err, volume.ErrUnsupported) {
		t.Errorf("unknown type: %v", err)
	}
}
