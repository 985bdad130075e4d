package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// newHost makes a Host for a test that needs root and the named programs.
func newHost(t *testing.T, programs ...string) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems")
	}
	for _, p := range append(programs, "losetup", "mount") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	h, err := New(Options{ScratchDir: filepath.Join(t.TempDir(), "scratch")})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// loop makes a loop device on a new sparse file. It detaches at the end of the
// test.
func loop(t *testing.T, sizeBytes int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "image")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", file).CombinedOutput()
	if err != nil {
		t.Skipf("needs a loop device: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device, file
}

// mountDir makes a directory from which everything is unmounted at the end.
func mountDir(t *testing.T, h *Host) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mount point") // the blank is escaped in mountinfo
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountAll(t, h, dir) })
	return dir
}

func unmountAll(t *testing.T, h *Host, path string) {
	t.Helper()
	ctx := context.Background()
	for range 8 {
		p, err := h.Inspect(ctx, path)
		if err != nil || p.Kind != KindMount {
			return
		}
		if err := h.UnmountLazily(ctx, path); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
}

func TestCommandIsKilledAtTheDeadline(t *testing.T) {
	h, err := New(Options{ScratchDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.run(ctx, "sleep", "300"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that hangs: %v", err)
	}
	if _, err := h.run(t.Context(), "holdfast-no-such-program"); !errors.Is(err, volume.ErrUnsupported) {
		t.Errorf("a missing program: %v", err)
	}
	_, err = h.run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
	if failed := (*commandError)(nil); !errors.As(err, &failed) || failed.Code != 3 || !strings.Contains(err.Error(), "out") {
		t.Errorf("a failing command: %v", err)
	}
}

func TestSweep(t *testing.T) {
	h := newHost(t, "mkfs.ext4")
	ctx := testContext(t)
	if err := h.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	device, _ := loop(t, 32<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(h.scratch, "check-left")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountAll(t, h, left) })
	if err := h.Mount(ctx, MountOptions{Device: device, Target: left, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if of, err := h.MountsOf(ctx, device); err != nil || len(of) != 0 {
		t.Errorf("still mounted: %v, %v", of, err)
	}
}
