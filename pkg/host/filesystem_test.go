package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestFilesystemLife(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			h := newHost(t, "mkfs."+fsType, "blkid")
			ctx := testContext(t)
			device, file := loop(t, 400<<20)

			content, err := h.Content(ctx, device)
			if err != nil || !content.Blank {
				t.Fatalf("content of a new device: %+v, %v; want blank", content, err)
			}
			if err := h.Format(ctx, FormatOptions{Device: device, FSType: fsType}); err != nil {
				t.Fatal(err)
			}
			content, err = h.Content(ctx, device)
			if err != nil || content.FSType != fsType || content.FSBytes != 400<<20 {
				t.Fatalf("content after mkfs: %+v, %v; want %s of 400 MiB", content, err, fsType)
			}
			if err := h.CheckMountable(ctx, device, fsType); err != nil {
				t.Fatal(err)
			}
			dir := mountDir(t, h)
			if err := h.Mount(ctx, MountOptions{Device: device, Target: dir, FSType: fsType, Options: []string{"noatime"}}); err != nil {
				t.Skipf("needs %s in the kernel: %v", fsType, err)
			}
			checkMounted(ctx, t, h, device, dir, fsType)
			checkGrow(ctx, t, h, GrowOptions{Device: device, Path: dir, FSType: fsType}, file)
			if busy, err := h.InUse(ctx, device); err != nil || !busy {
				t.Errorf("in use while mounted: %t, %v", busy, err)
			}
			if err := errors.Join(h.Unmount(ctx, dir), h.Unmount(ctx, dir)); err != nil {
				t.Fatal(err)
			}
			if busy, err := h.InUse(ctx, device); err != nil || busy {
				t.Errorf("in use after unmounting: %t, %v", busy, err)
			}
		})
	}
}

func checkMounted(ctx context.Context, t *testing.T, h *Host, device, dir, fsType string) {
	t.Helper()
	p, err := h.Inspect(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if top, ok := p.Top(); !ok || top.Source != device || top.FSType != fsType || top.Path != dir || top.ReadOnly {
		t.Errorf("inspect of the mount: %+v", p)
	}
	if of, err := h.MountsOf(ctx, device); err != nil || len(of) != 1 {
		t.Errorf("mounts of %s: %v, %v; want one", device, of, err)
	}
	u, err := h.Usage(ctx, dir)
	if err != nil || u.TotalBytes <= 0 || u.AvailableBytes <= 0 || u.UsedBytes < 0 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if (u.TotalInodes == 0) != (fsType == "btrfs") {
		t.Errorf("inodes of %s: %d", fsType, u.TotalInodes)
	}
	if err := h.Alive(ctx, dir); err != nil {
		t.Error(err)
	}
}

// checkGrow grows the device by 200 MiB and the filesystem with it, online if
// the kernel allows it, else (ext4) after unmounting.
func checkGrow(ctx context.Context, t *testing.T, h *Host, o GrowOptions, file string) {
	t.Helper()
	if err := os.Truncate(file, 600<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("losetup", "--set-capacity", o.Device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := h.Usage(ctx, o.Path)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Grow(ctx, o)
	if o.FSType == "ext4" && errors.Is(err, volume.ErrPrecondition) {
		t.Logf("online growth is not possible here, growing unmounted: %v", err)
		err = errors.Join(h.Unmount(ctx, o.Path), h.GrowUnmounted(ctx, o.Device),
			h.Mount(ctx, MountOptions{Device: o.Device, Target: o.Path, FSType: o.FSType}))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Grow(ctx, o); err != nil {
		t.Errorf("growing once more: %v", err)
	}
	after, err := h.Usage(ctx, o.Path)
	if err != nil || after.TotalBytes < before.TotalBytes+150<<20 {
		t.Errorf("usage after growing: %+v, before: %+v, %v", after, before, err)
	}
}
