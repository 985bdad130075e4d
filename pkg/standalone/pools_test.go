package standalone

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// mounted runs commands that mount something at a new directory, which they get
// as $MNT; they may use $DIR.
func mounted(t *testing.T, script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount: %v", err)
		}
	})
	cmd := exec.Command("sh", "-ec", script)
	cmd.Env = append(os.Environ(), "DIR="+dir, "MNT="+mnt)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return mnt
}

func xfs(t *testing.T, size, reflink string) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Skipf("needs mkfs.xfs: install the Debian package xfsprogs (%v)", err)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices: /dev/loop-control is missing")
	}
	return mounted(t, "truncate -s "+size+" $DIR/img; mkfs.xfs -q -K -m reflink="+reflink+" $DIR/img; mount -o loop $DIR/img $MNT")
}

func poolsOf(t *testing.T, o Options) (map[string]string, error) {
	t.Helper()
	l, err := layout(o)
	if err != nil {
		t.Fatal(err)
	}
	return pools(o, l)
}

func wantPools(t *testing.T, o Options, kind string) {
	t.Helper()
	got, err := poolsOf(t, o)
	if err != nil || len(got) != o.Nodes {
		t.Fatalf("%v, %v", got, err)
	}
	for name, p := range got {
		if !strings.HasPrefix(p, "name=default,"+kind+"="+o.Dir+"/"+name+"/pool") {
			t.Errorf("node %s has --pool %s, want %s", name, p, kind)
		}
	}
}

// TestPoolsFollowTheFilesystem: the pool's own probe decides, not the kind of
// filesystem, and what exists stays.
func TestPoolsFollowTheFilesystem(t *testing.T) {
	t.Run("XFS with reflink", func(t *testing.T) {
		o := goodOptions(xfs(t, "400M", "1")) // has no room for an image, and needs none
		wantPools(t, o, "dir")
		if st, err := os.Stat(filepath.Join(o.Dir, "n1", "pool")); err != nil || !st.IsDir() {
			t.Errorf("the pool's directory was not made: %v", err)
		}
		touch(t, filepath.Join(o.Dir, "n1", "pool.img"))
		got, err := poolsOf(t, o)
		if err != nil || !strings.Contains(got["n1"], "image=") || !strings.Contains(got["n2"], "dir=") {
			t.Errorf("beside an image that exists: %v, %v", got, err)
		}
	})
	t.Run("XFS without reflink", func(t *testing.T) {
		o := goodOptions(xfs(t, "8G", "0")) // sparse
		wantPools(t, o, "image")
		if err := os.MkdirAll(filepath.Join(o.Dir, "n1", "pool"), 0o755); err != nil {
			t.Fatal(err)
		}
		touch(t, filepath.Join(o.Dir, "n1", "pool", "pool.json"))
		got, err := poolsOf(t, o)
		if err != nil || !strings.Contains(got["n1"], "dir=") || !strings.Contains(got["n2"], "image=") {
			t.Errorf("beside a directory pool that exists: %v, %v", got, err)
		}
	})
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRoomForPools: what can't be allocated is refused before anything starts,
// with numbers; pools that exist need nothing.
func TestRoomForPools(t *testing.T) {
	o := goodOptions(mounted(t, "mount -t tmpfs -o size=3500m holdfast-test $MNT"))
	s, err := New(t.Context(), o, io.Discard, slog.New(slog.DiscardHandler))
	if !errors.Is(err, volume.ErrNoSpace) || s != nil {
		t.Fatalf("got %v, want ErrNoSpace", err)
	}
	for _, part := range []string{o.Dir, "3.4 GiB free", "3 new pools of 1.0 GiB", "3.0 GiB in advance", "1.0 GiB besides", "--pool-size"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
	touch(t, filepath.Join(o.Dir, "n1", "pool.img"))
	wantPools(t, o, "image")

	// A part that a killed process left counts for what it has.
	if err := os.Remove(filepath.Join(o.Dir, "n1", "pool.img")); err != nil {
		t.Fatal(err)
	}
	part, err := os.Create(filepath.Join(o.Dir, "n1", "pool.img.tmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	if err := unix.Fallocate(int(part.Fd()), 0, 0, 64<<20); err != nil {
		t.Fatal(err)
	}
	o.PoolSize = 816 << 20 // three need 2448 MiB of the 3500 - 1024, and have 64
	wantPools(t, o, "image")
}
