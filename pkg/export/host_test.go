package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// needHost skips unless exports can be made here.
func needHost(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts FUSE and attaches loop devices")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("needs %s: %v", dev, err)
		}
	}
}

func needTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: not installed", name)
		}
	}
}

// minute is a context for one step of a test.
func minute(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// soon is a context that ends before any user of a device lets go.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(minute(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// openFUSE exports dev, and makes sure that nothing is left of it.
func openFUSE(t *testing.T, dev block.Device) *fuseExport {
	t.Helper()
	return openFUSEWith(t, dev, 0)
}

func openFUSEWith(t *testing.T, dev block.Device, threads int) *fuseExport {
	t.Helper()
	needHost(t)
	dir := filepath.Join(t.TempDir(), "export")
	e, err := OpenFUSE(minute(t), FUSEOptions{Dir: dir, Volume: "hv-test", Device: dev, Threads: threads, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeExport(t, e) })
	return e.(*fuseExport)
}

func closeExport(t *testing.T, e Export) {
	t.Helper()
	if err := e.Close(minute(t)); err != nil {
		t.Errorf("Close: %v", err)
	}
	number := strings.TrimPrefix(e.Device(), "/dev/loop")
	if name, err := os.ReadFile("/sys/block/loop" + number + "/loop/backing_file"); err == nil && bytes.Contains(name, []byte(t.Name())) {
		t.Errorf("%s is left on %s", e.Device(), name)
	}
	if f, ok := e.(*fuseExport); ok {
		if _, err := os.Stat(f.opt.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the export's directory is left: %v", err)
		}
	}
}

// mountAt mounts device below a fresh directory until the test ends, or until
// the function returned is called.
func mountAt(t *testing.T, device, fstype string) (dir string, unmount func()) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device, dir, fstype, 0, ""); err != nil {
		t.Fatalf("mount %s: %v", device, err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// sysfs reads a number or word about a loop device.
func sysfs(t *testing.T, device, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(sysBlock, filepath.Base(device), file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// fileDevice is a block.Device on a file through the page cache, as simple as
// can be.
type fileDevice struct {
	*os.File
	size atomic.Int64
}

func newFileDevice(t *testing.T, size int64) *fileDevice {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	d := &fileDevice{File: f}
	d.size.Store(size)
	return d
}

func (d *fileDevice) Size() int64  { return d.size.Load() }
func (d *fileDevice) Close() error { return nil }

func (d *fileDevice) Submit(io *block.IO) {
	err := block.CheckRange(io, d.Size())
	if err == nil {
		switch io.Op {
		case block.OpRead:
			_, err = d.ReadAt(io.Data, io.Off)
		case block.OpWrite:
			_, err = d.WriteAt(io.Data, io.Off)
		case block.OpFlush:
			err = d.Sync()
		case block.OpTrim, block.OpWriteZeroes:
			err = unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, io.Off, io.Len)
		default:
			err = fmt.Errorf("%s", io.Op)
		}
	}
	io.Done(io, err)
}
