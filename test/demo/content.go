package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// content is what is written to a volume: files, or bytes of a raw device. path
// is where the pod has the volume.
type content interface {
	spec() kubelet.Spec
	// fill writes the first data, and says what.
	fill(ctx context.Context, path string) (string, error)
	// more writes more data, and says what.
	more(ctx context.Context, path string) (string, error)
	// writer is the writer that goes on.
	writer(path string) workload.WriterOptions
	// verify checks what fill and more wrote, and says what it has checked.
	verify(ctx context.Context, path string) (string, error)
	// size is what the pod sees of the volume's size, in bytes, and says how.
	size(ctx context.Context, n *kubelet.Node, v kubelet.Volume) (int64, string, error)
}

const (
	fillBytes  = 96 << 20
	fillFiles  = 24
	moreBytes  = 64 << 20 // what a replica misses
	moreFiles  = 3
	ringBytes  = 16 << 20
	writeEvery = 2 * time.Millisecond
	syncEvery  = 8
)

func ring(path string, off int64) workload.WriterOptions {
	return workload.WriterOptions{
		Path: path, Off: off, Records: ringBytes / workload.RecordBytes, SyncEvery: syncEvery, Interval: writeEvery,
	}
}

// filesystem is a volume with xfs.
type filesystem struct {
	seed uint64
	set  workload.FileSet
	late workload.FileSet // in a directory of their own
}

const lateDir = "more"

func (*filesystem) spec() kubelet.Spec { return kubelet.Spec{FSType: "xfs"} }

func (f *filesystem) fill(ctx context.Context, path string) (string, error) {
	set, err := workload.WriteFiles(ctx, path, f.seed, fillFiles, fillBytes)
	if err != nil {
		return "", err
	}
	f.set = set
	return fmt.Sprintf("%d files, %s, SHA-256 of %s is %.16s...", len(set), mib(set.Bytes()), set[0].Name, set[0].SHA256), nil
}

func (f *filesystem) more(ctx context.Context, path string) (string, error) {
	dir := filepath.Join(path, lateDir)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		f.late, err = workload.WriteFiles(ctx, dir, f.seed+100, moreFiles, moreBytes)
	}
	return fmt.Sprintf("%d files, %s", len(f.late), mib(f.late.Bytes())), err
}

func (*filesystem) writer(path string) workload.WriterOptions {
	return ring(filepath.Join(path, "log"), 0)
}

func (f *filesystem) verify(ctx context.Context, path string) (string, error) {
	err := f.set.Verify(ctx, path)
	if err == nil && len(f.late) > 0 {
		err = f.late.Verify(ctx, filepath.Join(path, lateDir))
	}
	return fmt.Sprintf("%d files: every SHA-256 is right", len(f.set)+len(f.late)), err
}

func (*filesystem) size(ctx context.Context, n *kubelet.Node, v kubelet.Volume) (int64, string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(n.TargetPath(v), &st); err != nil {
		return 0, "", err
	}
	usage, err := n.Stats(ctx, v)
	if err != nil {
		return 0, "", err
	}
	b := usage[csipb.VolumeUsage_BYTES]
	return int64(st.Blocks) * st.Bsize, fmt.Sprintf("df: %s; NodeGetVolumeStats: %s, %s used, %d inodes used",
		gib(int64(st.Blocks)*st.Bsize), gib(b.GetTotal()), mib(b.GetUsed()), usage[csipb.VolumeUsage_INODES].GetUsed()), nil
}

// raw is a block volume: the ring of the writer, and patterns behind it.
type raw struct {
	seed uint64
	late workload.Pattern
}

func (*raw) spec() kubelet.Spec { return kubelet.Spec{Block: true} }

func (r *raw) pattern() workload.Pattern {
	return workload.Pattern{Seed: r.seed, Off: ringBytes, Bytes: fillBytes}
}

func (r *raw) fill(ctx context.Context, path string) (string, error) {
	return "a pattern of " + mib(fillBytes), r.pattern().Write(ctx, path)
}

func (r *raw) more(ctx context.Context, path string) (string, error) {
	r.late = workload.Pattern{Seed: r.seed + 100, Off: ringBytes + fillBytes, Bytes: moreBytes}
	return "a pattern of " + mib(moreBytes), r.late.Write(ctx, path)
}

func (*raw) writer(path string) workload.WriterOptions { return ring(path, 0) }

func (r *raw) verify(ctx context.Context, path string) (string, error) {
	return "every byte of the patterns is right", errors.Join(r.pattern().Verify(ctx, path), r.late.Verify(ctx, path))
}

func (*raw) size(ctx context.Context, n *kubelet.Node, v kubelet.Volume) (int64, string, error) {
	usage, err := n.Stats(ctx, v)
	if err != nil {
		return 0, "", err
	}
	total := usage[csipb.VolumeUsage_BYTES].GetTotal()
	return total, "NodeGetVolumeStats: a device of " + gib(total), nil
}
