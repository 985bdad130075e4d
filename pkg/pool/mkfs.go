package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// makeXFS makes a pool's XFS in a file. Its features are those that the oldest
// supported kernel, 5.15, can mount; newer mkfs.xfs versions switch on more by
// themselves (large extent counts since 6.5, reverse mapping since 6.6, exchange
// and parent pointers later), so these are switched off by name, each only where
// this mkfs.xfs knows it. Sectors of 4096 bytes, as the loop device has. No
// discard: it would give back what was just allocated.
func makeXFS(ctx context.Context, path string) error {
	usage, err := exec.CommandContext(ctx, "mkfs.xfs").CombinedOutput() // exits with 1 and prints what it knows
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("mkfs.xfs is missing; install the package xfsprogs: %w", volume.ErrUnsupported)
	}
	out, err := exec.CommandContext(ctx, "mkfs.xfs", append(xfsArgs(string(usage)), path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.xfs: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// xfsArgs chooses the options by the usage text of mkfs.xfs.
func xfsArgs(usage string) []string {
	metadata := []string{"crc=1", "finobt=1", "reflink=1", "rmapbt=0"}
	inode := []string{"sparse=1"}
	if strings.Contains(usage, "bigtime=0|1") {
		metadata = append(metadata, "bigtime=1", "inobtcount=1")
	}
	if strings.Contains(usage, "nrext64=0|1") {
		inode = append(inode, "nrext64=0")
	}
	if strings.Contains(usage, "exchange=0|1") {
		inode = append(inode, "exchange=0")
	}
	args := []string{"-q", "-K", "-s", fmt.Sprintf("size=%d", sectorBytes), "-m", strings.Join(metadata, ","), "-i", strings.Join(inode, ",")}
	if strings.Contains(usage, "parent=0|1") {
		args = append(args, "-n", "parent=0")
	}
	return args
}
