package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
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
	args = append(args, o.Device)
	_, err := h.run(ctx, "mkfs."+o.FSType, args...)
	var failed *commandError
	if o.FSType == "btrfs" && errors.As(err, &failed) && strings.Contains(failed.Output, "cannot check mount status") {
		return h.formatApart(ctx, args)
	}
	return err
}

// formatApart runs mkfs.btrfs where it doesn't see dead mounts. It asks for the
// backing file of every loop device that is mounted, and fails for all volumes
// of a node when one of these files is on an export that died. So it gets a mount
// namespace of its own without them.
func (h *Host) formatApart(ctx context.Context, args []string) error {
	dead, err := deadLoopMounts(ctx)
	if err != nil {
		return err
	}
	const script = `n=$1; shift; while [ "$n" -gt 0 ]; do umount -c -l "$1"; shift; n=$((n - 1)); done; exec mkfs.btrfs "$@"`
	apart := []string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", strconv.Itoa(len(dead))}
	_, err = h.run(ctx, "unshare", slices.Concat(apart, dead, args)...)
	return err
}

// deadLoopMounts lists where loop devices are mounted whose file can't be reached.
func deadLoopMounts(ctx context.Context) ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var dead []string
	for _, m := range all {
		name, loop := strings.CutPrefix(m.Source, "/dev/loop")
		if !loop {
			continue
		}
		_, err := beside(ctx, func() (struct{}, error) {
			file, err := os.ReadFile("/sys/block/loop" + name + "/loop/backing_file")
			if err == nil {
				_, err = os.Stat(strings.TrimSuffix(string(file), "\n"))
			}
			return struct{}{}, err
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			dead = append(dead, m.Path)
		}
	}
	return dead, nil
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
