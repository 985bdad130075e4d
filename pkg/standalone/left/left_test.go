package left

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMountTable(t *testing.T) {
	const table = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:27 / /tmp/a rw - tmpfs tmpfs rw
40 22 7:0 / /tmp/hf/n1/pool rw master:2 - xfs /dev/loop0 rw
41 22 7:1 / /var/lib/with\040blank rw - ext4 /dev/loop1 rw
42 22 7:2 / /mnt/other rw - ext4 /dev/loop12 rw
43 40 0:44 / /tmp/hf/n1/state/x rw - fuse holdfast rw
44 22 0:45 / /tmp/hfother rw - tmpfs tmpfs rw
`
	got := mountsBelow(table, "/tmp/hf", []string{"/dev/loop0", "/dev/loop1"})
	want := []string{"/tmp/hf/n1/state/x", "/var/lib/with blank", "/tmp/hf/n1/pool"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRemove leaves an image in an image mounted, and one more mount elsewhere.
func TestRemove(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts filesystems")
	}
	dir, elsewhere := t.TempDir(), t.TempDir()
	t.Cleanup(func() { // should the test fail
		_ = unix.Unmount(elsewhere, unix.MNT_DETACH)
		_ = Remove(context.Background(), dir)
	})
	outer, inner := filepath.Join(dir, "outer"), filepath.Join(dir, "outer", "inner")
	makeMount(t, filepath.Join(dir, "outer.img"), 48<<20, outer)
	makeMount(t, filepath.Join(outer, "inner.img"), 16<<20, inner)
	run(t, "mount", "--bind", inner, elsewhere)

	things, err := Below(dir)
	if err != nil || len(things.Loops) != 2 || len(things.Mounts) != 3 || !slices.Contains(things.Mounts, elsewhere) {
		t.Fatalf("found %v, %v", things, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := Remove(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if things, err := Below(dir); err != nil || !things.None() {
		t.Errorf("still there: %v, %v", things, err)
	}
	if err := Remove(ctx, dir); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

func makeMount(t *testing.T, image string, size int64, at string) {
	t.Helper()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", image)
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", image, at)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: %v", name, err)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
}

func TestProcesses(t *testing.T) {
	const entry = "HOLDFAST_LEFT_TEST=a value"
	cmd := exec.Command("sleep", "600")
	cmd.Env = append(os.Environ(), entry)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // the child runs exec in its own time
		procs, err := Processes(entry)
		if err != nil {
			t.Fatal(err)
		}
		if len(procs) == 1 && procs[0].PID == cmd.Process.Pid && procs[0].Command == "sleep 600" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %v, want process %d", procs, cmd.Process.Pid)
		}
	}
	if procs, err := Processes("HOLDFAST_LEFT_TEST=a"); err != nil || len(procs) > 0 {
		t.Errorf("a prefix of the value matched: %v, %v", procs, err)
	}
}
