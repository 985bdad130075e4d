package host_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestFormatNextToADeadExport formats a volume while another one, which is still
// mounted, has lost its export. mkfs.btrfs looks at the files of all mounted loop
// devices, and gives up at the first that answers "not connected".
func TestFormatNextToADeadExport(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems")
	}
	for _, p := range []string{"losetup", "unshare", "mkfs.xfs", "mkfs.ext4", "mkfs.btrfs"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	h, err := host.New(host.Options{ScratchDir: filepath.Join(t.TempDir(), "scratch")})
	if err != nil {
		t.Fatal(err)
	}
	mountAndKill(ctx, t, h)
	for _, fsType := range []string{"xfs", "ext4", "btrfs"} {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 320<<20); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", image).CombinedOutput()
		if err != nil {
			t.Skipf("needs a loop device: %v: %s", err, out)
		}
		device := strings.TrimSpace(string(out))
		t.Cleanup(func() {
			if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
				t.Errorf("detach %s: %v: %s", device, err, out)
			}
		})
		if err := h.Format(ctx, host.FormatOptions{Device: device, FSType: fsType}); err != nil {
			t.Errorf("%s: %v", fsType, err)
			continue
		}
		mountAndGrow(ctx, t, h, host.GrowOptions{Device: device, Path: t.TempDir(), FSType: fsType})
	}
}

// mountAndGrow does the rest of what happens to a volume.
func mountAndGrow(ctx context.Context, t *testing.T, h *host.Host, o host.GrowOptions) {
	t.Helper()
	if c, err := h.Content(ctx, o.Device); err != nil || c.FSType != o.FSType {
		t.Errorf("content: %v, %v; want %s", c, err, o.FSType)
	}
	if err := h.CheckMountable(ctx, o.Device, o.FSType); err != nil {
		t.Error(err)
	}
	if err := h.Mount(ctx, host.MountOptions{Device: o.Device, Target: o.Path, FSType: o.FSType}); err != nil {
		t.Errorf("%s: %v", o.FSType, err)
		return
	}
	if err := h.Grow(ctx, o); err != nil {
		t.Errorf("%s: %v", o.FSType, err)
	}
	if err := h.Unmount(ctx, o.Path); err != nil {
		t.Error(err)
	}
}

// mountAndKill exports a volume, mounts it, and lets the export die.
func mountAndKill(ctx context.Context, t *testing.T, h *host.Host) {
	t.Helper()
	dir, mountPoint := filepath.Join(t.TempDir(), "export"), t.TempDir()
	e, err := export.OpenFUSE(ctx, export.FUSEOptions{
		Dir: dir, Volume: volume.IDFor("dead"), Device: blocktest.NewMemory(32 << 20), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := h.UnmountLazily(ctx, mountPoint); err != nil {
			t.Error(err)
		}
		if err := e.Close(ctx); err != nil {
			t.Log(err)
		}
	})
	if err := h.Format(ctx, host.FormatOptions{Device: e.Device(), FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Mount(ctx, host.MountOptions{Device: e.Device(), Target: mountPoint, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	// A forced unmount ends the connection, even if the mount itself is busy.
	if err := unix.Unmount(files[0], unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
}
