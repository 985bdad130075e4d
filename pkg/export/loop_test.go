package export

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func newImage(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func openLoop(t *testing.T, path string) Export {
	t.Helper()
	needHost(t)
	e, err := OpenLoop(minute(t), LoopOptions{Path: path, Logger: quiet})
	if errors.Is(err, volume.ErrUnsupported) {
		t.Skipf("needs direct I/O in %s: %v", filepath.Dir(path), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeExport(t, e) })
	return e
}

func TestLoop(t *testing.T) {
	needTool(t, "mkfs.xfs", "xfs_growfs")
	const small, large = int64(320 << 20), int64(384 << 20)
	image := newImage(t, small)
	if _, ok, err := LoopAttached(image); ok || err != nil {
		t.Fatalf("attached before: %t, %v", ok, err)
	}
	e := openLoop(t, image)
	if device, ok, err := LoopAttached(image); device != e.Device() || !ok || err != nil {
		t.Errorf("LoopAttached: %s, %t, %v; want %s", device, ok, err, e.Device())
	}
	for file, want := range map[string]string{"loop/dio": "1", "queue/logical_block_size": "4096"} {
		if got := sysfs(t, e.Device(), file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	run(t, "mkfs.xfs", "-q", e.Device())
	dir, unmount := mountAt(t, e.Device(), "xfs")
	content := bytes.Repeat([]byte("x"), 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "f"), content, 0o600); err != nil {
		t.Fatal(err)
	}

	// A process that starts anew finds the device, which has served meanwhile,
	// by its inode; also after the image grew, and under another name.
	if err := os.Truncate(image, large); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(filepath.Dir(image), elsewhere); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(elsewhere, "data.img")
	again := openLoop(t, moved)
	if again.Device() != e.Device() || again.Kind() != KindLoop || !again.Alive() {
		t.Errorf("adopted %s (%s, alive %t), want %s", again.Device(), again.Kind(), again.Alive(), e.Device())
	}
	if got := sysfs(t, e.Device(), "size"); got != "786432" {
		t.Errorf("%s sectors after adopting a grown image", got)
	}
	run(t, "xfs_growfs", dir)
	if err := os.Truncate(moved, large+4096); err != nil {
		t.Fatal(err)
	}
	if err := again.Resize(minute(t), large+4096); err != nil {
		t.Errorf("Resize: %v", err)
	}
	if err := again.Resize(minute(t), 2*large); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("Resize beyond the image: %v, want ErrPrecondition", err)
	}
	if err := again.Close(soon(t)); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("Close while mounted: %v, want ErrPrecondition", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("content: %v", err)
	}
	unmount()
	if err := again.Close(minute(t)); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, ok, err := LoopAttached(moved); ok || err != nil || e.Alive() {
		t.Errorf("after Close: attached %t, %v, alive %t", ok, err, e.Alive())
	}
}

// TestLoopReused closes an export whose device number has gone to another file
// meanwhile, because somebody detached it: the other one must not be touched.
func TestLoopReused(t *testing.T) {
	needTool(t, "losetup")
	first, second := newImage(t, 4<<20), newImage(t, 4<<20)
	e := openLoop(t, first)
	run(t, "losetup", "-d", e.Device())
	if e.Alive() {
		t.Error("alive after losetup -d")
	}
	run(t, "losetup", e.Device(), second)
	t.Cleanup(func() { run(t, "losetup", "-d", e.Device()) })
	if e.Alive() {
		t.Error("alive on another file")
	}
	if err := e.Resize(minute(t), 4<<20); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("Resize: %v, want ErrClosed", err)
	}
	if err := e.Close(minute(t)); err != nil {
		t.Errorf("Close: %v", err)
	}
	if got := sysfs(t, e.Device(), "loop/backing_file"); got != second {
		t.Errorf("%s stands on %s after Close of another export", e.Device(), got)
	}
}

func TestLoopRefuses(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	cases := []struct {
		name string
		path string
		want error
	}{
		{"no such file", filepath.Join(dir, "missing"), os.ErrNotExist},
		{"a directory", dir, unix.EISDIR},
		{"empty", newImage(t, 0), volume.ErrInvalid},
		{"odd size", newImage(t, 1<<20+512), volume.ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := OpenLoop(minute(t), LoopOptions{Path: c.path, Logger: quiet}); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if _, _, err := LoopAttached(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoopAttached of no file: %v", err)
	}
}

func TestProbe(t *testing.T) {
	needHost(t)
	before, err := loopNumbers()
	if err != nil {
		t.Fatal(err)
	}
	r := Probe(minute(t))
	for _, c := range r.Choices {
		if c.Kind == "" {
			t.Errorf("no export for %s: %s", c.Volumes, c.Why)
		}
	}
	for _, f := range r.Facilities {
		if f.Detail == "" || ((f.Name == "fuse" || f.Name == "loop") && !f.OK) {
			t.Errorf("%+v", f)
		}
	}
	text := r.String()
	for _, want := range []string{"kernel ", "fuse", "loop", "ublk", "nbd", "fuse: works with"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	t.Logf("loop devices before: %v\n%s", before, text)
}
