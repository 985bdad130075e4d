package host

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// FormatOptions say what filesystem to make.
type FormatOptions struct {
	Device string
	FSType string // "xfs", "ext4" or "btrfs"
	// Arguments for mkfs, checked by the caller: options and their values as
	// separate words, no path, no device.
	Arguments []string
	// Overwrite whatever the device holds: what an interrupted mkfs left.
	Overwrite bool
}

// Format makes a filesystem with the features of OldestKernel. It never
// discards: a new volume is all hole already.
func (h *Host) Format(ctx context.Context, o FormatOptions) error {
	h.featuresOnce.Do(func() { h.features = h.probeFeatures(ctx) })
	var args []string
	switch o.FSType {
	case "xfs":
		args = xfsArguments(h.features, o)
	case "ext4":
		args = ext4Arguments(o)
	case "btrfs":
		args = btrfsArguments(h.features, o)
	default:
		return fmt.Errorf("make a filesystem of type %q: %w", o.FSType, volume.ErrUnsupported)
	}
	_, err := h.run(ctx, "mkfs."+o.FSType, append(args, o.Device)...)
	return err
}

// OldestKernel is the oldest Linux whose nodes can mount what Format makes.
const OldestKernel = "5.15"

// mkfsFeatures are features newer than OldestKernel, or than the oldest tools,
// that the installed tools know, and would perhaps turn on by default.
type mkfsFeatures struct {
	xfs   string // mkfs.xfs's usage text, which lists its options
	btrfs string // mkfs.btrfs's list of features
}

func (h *Host) probeFeatures(ctx context.Context) mkfsFeatures {
	var f mkfsFeatures
	// Both print to either output, and mkfs.xfs fails on purpose.
	f.xfs = h.output(ctx, "mkfs.xfs")
	f.btrfs = h.output(ctx, "mkfs.btrfs", "-O", "list-all")
	return f
}

// xfsFeature is one key of a mkfs.xfs option.
type xfsFeature struct{ option, key, value string }

// xfsFeatures name every on-disk feature, so that no newer default slips in.
// The first group is what Linux 5.15 mounts (the defaults of its year, as in
// xfsprogs' own lts_5.15.conf); the second is newer: large extent counters
// (5.19), parent pointers and file exchange (6.10), metadata directories (6.13).
var xfsFeatures = []xfsFeature{
	{"-m", "crc", "1"}, {"-m", "finobt", "1"}, {"-m", "reflink", "1"}, {"-m", "rmapbt", "0"},
	{"-m", "bigtime", "1"}, {"-m", "inobtcount", "1"}, {"-i", "sparse", "1"},

	{"-i", "nrext64", "0"}, {"-i", "exchange", "0"}, {"-n", "parent", "0"}, {"-m", "metadir", "0"},
}

func xfsArguments(known mkfsFeatures, o FormatOptions) []string {
	args := []string{"-q", "-K"}
	if o.Overwrite {
		args = append(args, "-f")
	}
	for _, f := range xfsFeatures {
		// A key given twice is an error; the caller's has the last word.
		if strings.Contains(known.xfs, f.key+"=") && !hasKey(o.Arguments, f) {
			args = append(args, f.option, f.key+"="+f.value)
		}
	}
	return append(args, o.Arguments...)
}

func hasKey(args []string, f xfsFeature) bool {
	for i := 1; i < len(args); i++ {
		if args[i-1] != f.option {
			continue
		}
		for part := range strings.SplitSeq(args[i], ",") {
			if key, _, _ := strings.Cut(part, "="); key == f.key {
				return true
			}
		}
	}
	return false
}

// ext4Features start from none, because /etc/mke2fs.conf differs between
// distributions: without orphan_file (Linux 5.15 knows it, its e2fsprogs don't)
// and metadata_csum_seed.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

func ext4Arguments(o FormatOptions) []string {
	// mke2fs takes the last of a repeated option, so the caller's are merged in.
	features, extended := ext4Features, "nodiscard"
	rest := make([]string, 0, len(o.Arguments))
	for i := 0; i < len(o.Arguments); i++ {
		switch {
		case o.Arguments[i] == "-O" && i+1 < len(o.Arguments):
			i++
			features += "," + o.Arguments[i]
		case o.Arguments[i] == "-E" && i+1 < len(o.Arguments):
			i++
			extended += "," + o.Arguments[i]
		default:
			rest = append(rest, o.Arguments[i])
		}
	}
	// -F: never ask. What may be overwritten was decided by the caller.
	args := []string{"-q", "-F", "-m", "0", "-O", features, "-E", extended}
	if !slices.Contains(rest, "-b") {
		args = append(args, "-b", "4096")
	}
	return append(args, rest...)
}

func btrfsArguments(known mkfsFeatures, o FormatOptions) []string {
	args := []string{"-q", "-K"}
	if o.Overwrite {
		args = append(args, "-f")
	}
	// The block group tree needs Linux 6.1.
	if strings.Contains(known.btrfs, "block-group-tree") && !slices.Contains(o.Arguments, "block-group-tree") {
		args = append(args, "-O", "^block-group-tree")
	}
	return append(args, o.Arguments...)
}
