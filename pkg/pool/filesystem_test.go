package pool_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestFileSystems: a pool opens on what can share blocks, and says what to do
// where that is missing, leaving nothing.
func TestFileSystems(t *testing.T) {
	tests := []struct {
		name, fs string
		mkfs     []string
		want     error
	}{
		{"xfs with reflink", "xfs", []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=1"}, nil},
		{"xfs without reflink", "xfs", []string{"mkfs.xfs", "-q", "-K", "-m", "reflink=0"}, volume.ErrUnsupported},
		{"btrfs", "btrfs", []string{"mkfs.btrfs", "-q", "-K"}, nil},
		{"ext4", "ext4", []string{"mkfs.ext4", "-q"}, volume.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := mountWith(t, tt.fs, tt.mkfs)
			before := names(t, dir)
			if err := pool.CanHold(dir); !errors.Is(err, tt.want) {
				t.Errorf("CanHold: %v, want %v", err, tt.want)
			}
			if after := names(t, dir); len(after) != len(before) {
				t.Errorf("CanHold left behind: %v", after)
			}
			p, err := pool.Open(context.Background(), pool.Options{Name: "p", Path: dir, Logger: pooltest.Logger(t)})
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "image-file pool") {
					t.Errorf("does not say what to do: %v", err)
				}
				if after := names(t, dir); len(after) != len(before) {
					t.Errorf("left behind: %v", after)
				}
				return
			}
			if r := p.Report(); !r.Healthy {
				t.Errorf("report %+v", r)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// mountWith mounts a new file system in a file.
func mountWith(t *testing.T, fs string, mkfs []string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("needs %s: %v", mkfs[0], err)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\t"+fs+"\n") {
		t.Skipf("needs %s in the kernel (%v)", fs, err)
	}
	dir := t.TempDir()
	file, mnt := filepath.Join(dir, "fs.img"), filepath.Join(dir, "mnt")
	for _, cmd := range [][]string{
		{"truncate", "-s", "400M", file}, append(mkfs, file), {"mkdir", mnt}, {"mount", "-o", "loop", file, mnt},
	} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return mnt
}
