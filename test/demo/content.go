package main

import (
	"context"
	"fmt"
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
	// writer is the writer that goes on.
	writer(path string) workload.WriterOptions
	// verify checks what fill wrote, and says what it has checked.
	verify(ctx context.Context, path string) (string, error)
	// size is what the pod sees of the volume's size, in bytes, and says how.
	size(ctx context.Context, n *kubelet.Node, v kubelet.Volume) (int64, string, error)
}

const (
	fillBytes  = 96 << 20
	fillFiles  = 24
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
}

func (*filesystem) spec() kubelet.Spec { return kubelet.Spec{FSType: "xfs"} }

func (f *filesystem) fill(ctx context.Context, path string) (string, error) {
	set, err := workload.WriteFiles(ctx, path, f.seed, fillFiles, fillBytes)
	if err != nil {
		return "", err
	}
	f.set = set
	return fmt.Sprintf("%d files, %s, SHA-256 of %s is %.16s...", len(set), mib(set.Bytes()), set[0].Name, set[0].SHA256), nil
}

func (*filesystem) writer(path string) workload.WriterOptions {
	return ring(filepath.Join(path, "log"), 0)
}

func (f *filesystem) verify(ctx context.Context, path string) (string, error) {
	return fmt.Sprintf("%d files: every SHA-256 is right", len(f.set)), f.set.Verify(ctx, path)
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

// raw is a block volume: the ring of the writer, and a pattern behind it.
type raw struct{ seed uint64 }

func (*raw) spec() kubelet.Spec { return kubelet.Spec{Block: true} }

func (r *raw) pattern() workload.Pattern {
	return workload.Pattern{Seed: r.seed, Off: ringBytes, Bytes: fillBytes}
}

func (r *raw) fill(ctx context.Context, path string) (string, error) {
	return "a pattern of " + mib(fillBytes), r.pattern().Write(ctx, path)
}

func (*raw) writer(path string) workload.WriterOptions { return ring(path, 0) }

func (r *raw) verify(ctx context.Context, path string) (string, error) {
	return "every byte of the pattern is right", r.pattern().Verify(ctx, path)
}

func (*raw) size(ctx context.Context, n *kubelet.Node, v kubelet.Volume) (int64, string, error) {
	usage, err := n.Stats(ctx, v)
	if err != nil {
		return 0, "", err
	}
	total := usage[csipb.VolumeUsage_BYTES].GetTotal()
	return total, "NodeGetVolumeStats: a device of " + gib(total), nil
}
