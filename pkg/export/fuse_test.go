package export

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestFUSEDevice(t *testing.T) {
	mem := blocktest.NewMemory(8 << 20)
	e := openFUSE(t, mem)
	if e.Kind() != KindFUSE || !e.Alive() {
		t.Errorf("kind %s, alive %t", e.Kind(), e.Alive())
	}
	for file, want := range map[string]string{
		"loop/dio": "1", "queue/logical_block_size": "4096", "size": "16384", "queue/write_cache": "write back",
	} {
		if got := sysfs(t, e.Device(), file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if sysfs(t, e.Device(), "queue/discard_max_bytes") == "0" {
		t.Error("the device has no discard")
	}
	f, err := os.OpenFile(e.Device(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := block.Alloc(1 << 20)
	for i := range want {
		want[i] = byte(i>>12) ^ byte(i)
	}
	got := block.Alloc(1 << 20)
	flushes := mem.Count(block.OpFlush)
	if _, err := f.WriteAt(want, 8192); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) || !bytes.Equal(mem.Bytes()[8192:8192+1<<20], want) {
		t.Errorf("read back: %v, equal %t", err, bytes.Equal(got, want))
	}
	if mem.Count(block.OpFlush) == flushes {
		t.Error("fsync did not reach the device as a flush")
	}
	mem.Fail(func(io *block.IO) error {
		if io.Off >= 4<<20 {
			return volume.ErrFailed
		}
		return nil
	})
	if _, err := f.ReadAt(got[:4096], 4<<20); !errors.Is(err, unix.EIO) {
		t.Errorf("read of a failed range: %v, want EIO", err)
	}
	if _, err := f.ReadAt(got[:4096], 0); err != nil {
		t.Errorf("read of another range: %v", err)
	}
}

func TestFUSEVerify(t *testing.T) {
	needTool(t, "fio")
	reordering := blocktest.NewMemory(64 << 20)
	reordering.Reorder(1)
	t.Cleanup(func() { _ = reordering.Close() })
	cases := []struct {
		name    string
		dev     block.Device
		threads int
	}{
		{"memory", blocktest.NewMemory(64 << 20), 0},
		{"reordering memory", reordering, 0},
		{"reordering memory, threads", reordering, DefaultThreads},
		{"file", newFileDevice(t, 64<<20), 0},
		{"file, threads", newFileDevice(t, 64<<20), DefaultThreads},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := openFUSEWith(t, c.dev, c.threads)
			for _, engine := range []string{"io_uring", "libaio"} {
				out := run(t, "fio", "--name=v", "--filename="+e.Device(), "--size=64m", "--direct=1", "--ioengine="+engine,
					"--rw=randrw", "--bsrange=4k-1m", "--blockalign=4k", "--iodepth=32", "--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
					"--verify_backlog=256", "--io_size=192m", "--randrepeat=0", "--output-format=terse")
				if strings.Contains(out, "verify:") {
					t.Errorf("%s:\n%s", engine, out)
				}
			}
		})
	}
}

// TestFUSEFilesystem goes through the life of a volume: format, mount, fill,
// grow online, trim, refuse to go while mounted, check.
func TestFUSEFilesystem(t *testing.T) {
	needTool(t, "mkfs.xfs", "xfs_growfs", "xfs_repair", "fstrim")
	const small, large = int64(320 << 20), int64(448 << 20)
	dev := newFileDevice(t, small)
	e := openFUSE(t, dev)
	run(t, "mkfs.xfs", "-q", e.Device())
	dir, unmount := mountAt(t, e.Device(), "xfs")
	content := bytes.Repeat([]byte("holdfast"), 4<<20)
	write := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
	}
	write("a")

	if err := dev.Truncate(large); err != nil {
		t.Fatal(err)
	}
	if err := e.Resize(minute(t), large); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Resize before the device grew: %v, want ErrInvalid", err)
	}
	dev.size.Store(large)
	if err := e.Resize(minute(t), large); err != nil {
		t.Fatal(err)
	}
	run(t, "xfs_growfs", dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || int64(fs.Blocks)*fs.Bsize < small {
		t.Errorf("file system of %d bytes after growing: %v", int64(fs.Blocks)*fs.Bsize, err)
	}
	write("b")

	used := allocated(t, dev)
	if err := os.Remove(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	// XFS frees a removed file's space in the background, so the first fstrim may
	// find nothing.
	for ctx := minute(t); ; {
		run(t, "fstrim", dir)
		now := allocated(t, dev)
		if now <= used-int64(len(content))/2 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%d bytes allocated before fstrim, %d after", used, now)
		}
	}

	err := e.Close(soon(t))
	if !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Close while mounted at %s: %v, want ErrPrecondition with the place", dir, err)
	}
	if !e.Alive() {
		t.Error("not alive after a refused Close")
	}
	write("c")
	unmount()
	run(t, "xfs_repair", "-n", e.Device())
	dir, unmount = mountAt(t, e.Device(), "xfs")
	for _, name := range []string{"b", "c"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %v, %d bytes", name, err, len(got))
		}
	}
	unmount()
}

func allocated(t *testing.T, d *fileDevice) int64 {
	t.Helper()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestFUSECloseWhileOpen has the device open without a claim, as a program that
// uses a raw block volume does.
func TestFUSECloseWhileOpen(t *testing.T) {
	e := openFUSE(t, blocktest.NewMemory(4<<20))
	f, err := os.OpenFile(e.Device(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := e.Close(soon(t)); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("Close while open: %v, want ErrPrecondition", err)
	}
	if _, err := f.WriteAt([]byte("still works"), 0); err != nil {
		t.Error(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Error(err)
	}
	if !e.Alive() {
		t.Error("the device went away when its user closed it, after Close had been refused")
	}
	if err := e.Close(minute(t)); err != nil {
		t.Errorf("Close when nobody has it open: %v", err)
	}
	if err := e.Close(minute(t)); err != nil || e.Alive() {
		t.Errorf("second Close: %v, alive %t", err, e.Alive())
	}
	if err := e.Resize(minute(t), 4<<20); !errors.Is(err, volume.ErrClosed) {
		t.Errorf("Resize after Close: %v, want ErrClosed", err)
	}
}

// TestFUSECloseStuck closes while the device does not answer writes that the
// page cache holds back: Close must come back, and finish once they go on.
func TestFUSECloseStuck(t *testing.T) {
	mem := blocktest.NewMemory(4 << 20)
	e := openFUSE(t, mem)
	f, err := os.OpenFile(e.Device(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite })
	t.Cleanup(func() { mem.Hold(nil); mem.Release(-1) })
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }() // writes back, so it hangs
	if err := mem.WaitHeld(minute(t), 1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Close(soon(t)); !errors.Is(err, volume.ErrUnavailable) && !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("Close while I/O is stuck: %v", err)
		}
	}
	mem.Hold(nil)
	mem.Release(-1)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := e.Close(minute(t)); err != nil {
		t.Error(err)
	}
	if mem.Bytes()[4095] != 1 {
		t.Error("the write that was held is lost")
	}
}

func TestFUSERefuses(t *testing.T) {
	needHost(t)
	dir := filepath.Join(t.TempDir(), "export")
	for _, size := range []int64{0, 4095, 1<<20 + 512} {
		_, err := OpenFUSE(minute(t), FUSEOptions{Dir: dir, Volume: "hv-test", Device: blocktest.NewMemory(size), Logger: quiet})
		if !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("a device of %d bytes: %v, want ErrInvalid", size, err)
		}
	}
	e := openFUSE(t, blocktest.NewMemory(1<<20))
	if _, err := OpenFUSE(minute(t), e.opt); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("a second export in the same place: %v, want ErrPrecondition", err)
	}
	if !e.Alive() {
		t.Error("the first export was harmed")
	}
	if _, err := os.Open(filepath.Join(e.opt.Dir, fuseFile)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opening the FUSE file beside the loop device: %v, want EBUSY", err)
	}
}

// TestFUSEOpenGivesUp opens with contexts that end before, or while, the device
// is attached, which asks the FUSE file for its attributes.
func TestFUSEOpenGivesUp(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	const givesUp = "hv-gives-up"
	for i := range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*500*time.Microsecond)
		e, err := OpenFUSE(ctx, FUSEOptions{Dir: filepath.Join(dir, "export"), Volume: givesUp, Device: blocktest.NewMemory(1 << 20), Logger: quiet})
		cancel()
		switch {
		case err == nil:
			closeExport(t, e)
		case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, unix.ETIMEDOUT):
			t.Errorf("after %d half milliseconds: %v", i, err)
		}
		if left := leftovers(t, dir); len(left) > 0 {
			t.Fatalf("after %d half milliseconds there is left: %v", i, left)
		}
	}
	// Nothing else on this machine is named like this.
	numbers, err := loopNumbers()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		f, info, err := loopStatus(n, unix.O_RDONLY)
		if err != nil {
			continue // not attached
		}
		if name := unix.ByteSliceToString(info.File_name[:]); name == givesUp {
			t.Errorf("loop device %d is left", n)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
