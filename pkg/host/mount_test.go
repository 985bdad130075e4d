package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestBind(t *testing.T) {
	h := newHost(t, "mkfs.ext4")
	ctx := testContext(t)
	device, _ := loop(t, 32<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	source, target := mountDir(t, h), mountDir(t, h)
	if err := h.Mount(ctx, MountOptions{Device: device, Target: source, FSType: "ext4", Options: []string{"nosuid"}}); err != nil {
		t.Fatal(err)
	}
	bind := BindOptions{Source: source, Target: target, Access: ReadOnly}
	if err := h.Bind(ctx, bind); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); err == nil {
		t.Error("a read-only bind mount can be written")
	}
	options, err := os.ReadFile(mountInfoPath)
	if err != nil || !strings.Contains(string(options), unescapedLine(target)+" ro,nosuid") {
		t.Errorf("the bind mount lost its options: %v", err)
	}
	bind.Access = ReadWrite
	if err := h.Rebind(ctx, bind); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := h.Unmount(ctx, source); err != nil {
		t.Error(err)
	}
	of, err := h.MountsOf(ctx, device)
	if err != nil || len(of) != 1 || of[0].Path != target {
		t.Errorf("mounts of %s: %v, %v", device, of, err)
	}
}

func unescapedLine(path string) string { return strings.ReplaceAll(path, " ", `\040`) }

func TestBindDeviceNode(t *testing.T) {
	h := newHost(t)
	ctx := testContext(t)
	device, _ := loop(t, 1<<20)
	target := filepath.Join(t.TempDir(), "block")
	if err := errors.Join(h.MakeFile(target), h.MakeFile(target)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountAll(t, h, target) })
	if err := h.Bind(ctx, BindOptions{Source: device, Target: target, Access: ReadWrite}); err != nil {
		t.Fatal(err)
	}
	p, err := h.Inspect(ctx, target)
	if top, ok := p.Top(); err != nil || !ok || !top.IsNode(device) || top.IsNode(device+"0") {
		t.Errorf("inspect: %+v, %v", p, err)
	}
	if of, err := h.MountsOf(ctx, device); err != nil || len(of) != 1 {
		t.Errorf("mounts: %v, %v", of, err)
	}
	if size, err := h.DeviceSize(ctx, target); err != nil || size != 1<<20 {
		t.Errorf("size through the target: %d, %v", size, err)
	}
	if err := h.SetAccess(ctx, device, ReadOnly); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(target, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write([]byte("x")); err == nil && f.Sync() == nil {
			t.Error("a read-only device can be written")
		}
		f.Close()
	}
	if err := errors.Join(h.SetAccess(ctx, device, ReadWrite), h.Sync(ctx, device)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(h.Unmount(ctx, target), h.Remove(target), h.Remove(target)); err != nil {
		t.Error(err)
	}
}

func TestDeadDevice(t *testing.T) {
	h := newHost(t, "mkfs.xfs", "xfs_io")
	ctx := testContext(t)
	device, _ := loop(t, 320<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs"}); err != nil {
		t.Fatal(err)
	}
	dir := mountDir(t, h)
	if err := h.Mount(ctx, MountOptions{Device: device, Target: dir, FSType: "xfs"}); err != nil {
		t.Skipf("needs xfs in the kernel: %v", err)
	}
	if out, err := exec.Command("xfs_io", "-x", "-c", "shutdown", dir).CombinedOutput(); err != nil {
		t.Skipf("needs xfs_io's shutdown: %v: %s", err, out)
	}
	if err := h.Alive(ctx, dir); !errors.Is(err, volume.ErrUnavailable) {
		t.Errorf("a filesystem that has shut down: %v", err)
	}
	if p, err := h.Inspect(ctx, dir); err != nil || p.Kind != KindMount {
		t.Errorf("inspect: %+v, %v", p, err)
	}
	if err := h.UnmountLazily(ctx, dir); err != nil {
		t.Error(err)
	}
}

func TestInspect(t *testing.T) {
	h, err := New(Options{ScratchDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"empty", "full"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "full", "file"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(dir, "full", "blank"), nil, 0o600),
		os.Symlink(filepath.Join(dir, "full"), filepath.Join(dir, "link")),
	); err != nil {
		t.Fatal(err)
	}
	tests := map[string]Path{
		"missing":        {Resolved: "missing", Kind: KindMissing},
		"no/such/parent": {Resolved: "no/such/parent", Kind: KindMissing},
		"empty":          {Resolved: "empty", Kind: KindDirectory, Empty: true},
		"full":           {Resolved: "full", Kind: KindDirectory},
		"full/file":      {Resolved: "full/file", Kind: KindFile},
		"full/blank":     {Resolved: "full/blank", Kind: KindFile, Empty: true},
		"link":           {Resolved: "link", Kind: KindSymlink},
		"link/file":      {Resolved: "full/file", Kind: KindFile},
	}
	for path, want := range tests {
		t.Run(path, func(t *testing.T) {
			want.Resolved = filepath.Join(dir, want.Resolved)
			got, err := h.Inspect(t.Context(), filepath.Join(dir, path))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		})
	}
	if err := h.Remove(filepath.Join(dir, "full")); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("remove a full directory: %v", err)
	}
	if err := h.MakeFile(filepath.Join(dir, "link")); err == nil {
		t.Error("MakeFile followed a link")
	}
}
