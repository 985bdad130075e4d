package kubelet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// BinVariable names the environment variable with the directory of built
// commands; without it, tests build them.
const BinVariable = "HOLDFAST_BIN"

// Build returns a directory with the commands: $HOLDFAST_BIN, or dir, into which
// they are built from the module that the test belongs to.
func Build(ctx context.Context, dir string) (string, error) {
	if bin := os.Getenv(BinVariable); bin != "" {
		return bin, nil
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "github.com/holdfast-csi/holdfast/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the commands: %w: %s", err, out)
	}
	return dir, nil
}

// Missing says what the tests of real processes need and this machine lacks; ""
// when it has everything.
func Missing() string {
	if os.Geteuid() != 0 {
		return "needs root: mounts and loop devices"
	}
	for _, f := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(f); err != nil {
			return "needs " + f
		}
	}
	for _, c := range []string{"mkfs.xfs", "xfs_growfs", "blkid"} {
		if _, err := exec.LookPath(c); err != nil {
			return "needs " + c + " (Debian: xfsprogs, util-linux)"
		}
	}
	return ""
}
