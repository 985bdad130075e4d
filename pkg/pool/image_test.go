package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func imageOptions(t *testing.T) pool.ImageOptions {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices: /dev/loop-control is missing")
	}
	dir := t.TempDir()
	o := pool.ImageOptions{Path: filepath.Join(dir, "pool.img"), MountPoint: filepath.Join(dir, "mnt"), SizeBytes: pool.MinImageBytes, Logger: pooltest.Logger(t)}
	t.Cleanup(func() { // whatever the test did
		for unix.Unmount(o.MountPoint, unix.MNT_DETACH) == nil {
		}
		if left := loopsOf(t, o.Path); left != "" {
			_ = exec.Command("losetup", "-d", left).Run()
			t.Errorf("%s is still attached", left)
		}
	})
	return o
}

// loopsOf returns the loop device of an image, by losetup's opinion.
func loopsOf(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	out, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", path).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func openImage(t *testing.T, o pool.ImageOptions) *pool.Image {
	t.Helper()
	im, err := pool.OpenImage(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func closeImage(t *testing.T, im *pool.Image) {
	t.Helper()
	if err := im.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestImageKeepsItsContent(t *testing.T) {
	o := imageOptions(t)
	im := openImage(t, o)
	var st unix.Stat_t
	if err := unix.Stat(o.Path, &st); err != nil || st.Blocks*512 < o.SizeBytes {
		t.Errorf("the image has %d of %d bytes allocated (%v)", st.Blocks*512, o.SizeBytes, err)
	}
	if err := os.WriteFile(filepath.Join(o.MountPoint, "f"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Nobody may give the image's space back to the host.
	if out, err := exec.Command("fstrim", o.MountPoint).CombinedOutput(); err == nil {
		t.Errorf("fstrim went through: %s", out)
	}
	if out, err := exec.Command("losetup", "-n", "-O", "DIO,LOG-SEC", "-j", o.Path).Output(); err != nil || strings.Join(strings.Fields(string(out)), " ") != "1 4096" {
		t.Errorf("direct I/O and sector size: %q (%v)", out, err)
	}
	closeImage(t, im)
	if loop := loopsOf(t, o.Path); loop != "" {
		t.Errorf("%s is attached after Close", loop)
	}
	im = openImage(t, o)
	if got, err := os.ReadFile(filepath.Join(o.MountPoint, "f")); err != nil || string(got) != "kept" {
		t.Errorf("read %q (%v)", got, err)
	}
	closeImage(t, im)
}

func TestImageIsOneProcessesAlone(t *testing.T) {
	o := imageOptions(t)
	im := openImage(t, o)
	defer closeImage(t, im)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := pool.OpenImage(ctx, o); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("opened twice: %v", err)
	}
}

func TestImageRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, o *pool.ImageOptions)
		want   error
	}{
		{"relative", func(_ *testing.T, o *pool.ImageOptions) { o.Path = "pool.img" }, volume.ErrInvalid},
		{"mounted over everything", func(_ *testing.T, o *pool.ImageOptions) { o.MountPoint = "/" }, volume.ErrInvalid},
		{"too small", func(_ *testing.T, o *pool.ImageOptions) { o.SizeBytes = 10 << 20 }, volume.ErrInvalid},
		{"negative", func(_ *testing.T, o *pool.ImageOptions) { o.SizeBytes = -1 }, volume.ErrInvalid},
		{"larger than the host", func(_ *testing.T, o *pool.ImageOptions) { o.SizeBytes = 8 << 40 }, volume.ErrNoSpace},
		{"somebody's file", func(t *testing.T, o *pool.ImageOptions) {
			if err := os.WriteFile(o.Path, bytes.Repeat([]byte("precious"), 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}, volume.ErrCorrupt},
		{"an empty file", func(t *testing.T, o *pool.ImageOptions) {
			if err := os.WriteFile(o.Path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, volume.ErrCorrupt},
		{"damaged beyond mounting", func(t *testing.T, o *pool.ImageOptions) {
			if err := os.WriteFile(o.Path, append([]byte("XFSB"), make([]byte, 1<<20)...), 0o600); err != nil {
				t.Fatal(err)
			}
		}, volume.ErrCorrupt},
		{"mount point taken", func(t *testing.T, o *pool.ImageOptions) {
			if err := os.Mkdir(o.MountPoint, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("none", o.MountPoint, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}, volume.ErrPrecondition},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := imageOptions(t)
			tt.change(t, &o)
			before, _ := os.ReadFile(o.Path)
			im, err := pool.OpenImage(context.Background(), o)
			if im != nil {
				closeImage(t, im)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if after, _ := os.ReadFile(o.Path); before != nil && !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
			if _, err := os.Lstat(o.Path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left behind: %s.tmp (%v)", o.Path, err)
			}
		})
	}
}

func TestImageInterruptedMaking(t *testing.T) {
	o := imageOptions(t)
	if err := os.WriteFile(o.Path+".tmp", []byte("half an image of another size"), 0o600); err != nil {
		t.Fatal(err)
	}
	im := openImage(t, o)
	closeImage(t, im)
	if _, err := os.Lstat(o.Path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestImageInUseStaysMounted(t *testing.T) {
	o := imageOptions(t)
	im := openImage(t, o)
	f, err := os.Create(filepath.Join(o.MountPoint, "f"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := im.Close(ctx); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("closed under an open file: %v", err)
	}
	if _, err := f.WriteString("served on"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	closeImage(t, openImage(t, o)) // taken over
}

// TestMain lets the test program be a node process that gets killed.
func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST_TEST_CHILD") != "" {
		childMain()
		return
	}
	os.Exit(m.Run())
}

func childMain() {
	im, err := pool.OpenImage(context.Background(), pool.ImageOptions{
		Path: os.Getenv("CHILD_IMAGE"), MountPoint: os.Getenv("CHILD_MOUNT"), SizeBytes: pool.MinImageBytes,
	})
	if err == nil {
		_, err = pool.Open(context.Background(), pool.Options{Name: "fast", Path: os.Getenv("CHILD_MOUNT")})
	}
	fmt.Println("opened", im != nil, err)
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed
}

func TestImageOfAKilledProcessIsTakenOver(t *testing.T) {
	o := imageOptions(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "HOLDFAST_TEST_CHILD=1", "CHILD_IMAGE="+o.Path, "CHILD_MOUNT="+o.MountPoint)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := stdout.Read(line)
	if got := string(line[:n]); got != "opened true <nil>\n" {
		t.Errorf("the child says %q", got)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	was := loopsOf(t, o.Path)
	if was == "" {
		t.Fatal("no loop device: nothing to take over")
	}
	im := openImage(t, o)
	p := pooltest.Open(t, pool.Options{Name: "fast", Path: o.MountPoint})
	if now := loopsOf(t, o.Path); now != was {
		t.Errorf("was on %s, now on %s", was, now)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	closeImage(t, im)
}

// TestImageAttachedElsewhereIsTakenOver: a process died after attaching by
// hand, or in a mount namespace of its own.
func TestImageAttachedElsewhereIsTakenOver(t *testing.T) {
	o := imageOptions(t)
	closeImage(t, openImage(t, o))
	out, err := exec.Command("losetup", "-f", "--show", "--sector-size", "4096", o.Path).Output()
	if err != nil {
		t.Fatal(err)
	}
	im := openImage(t, o)
	if now := loopsOf(t, o.Path); now != strings.TrimSpace(string(out)) {
		t.Errorf("a second loop device: %q besides %q", now, out)
	}
	closeImage(t, im)
}
