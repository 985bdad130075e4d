package host

import (
	"context"
	"errors"
	"fmt"
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

func TestXFSFeaturesMountOnOldKernels(t *testing.T) {
	h := newHost(t, "mkfs.xfs", "xfs_db")
	ctx := testContext(t)
	device, _ := loop(t, 320<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs"}); err != nil {
		t.Fatal(err)
	}
	out, err := h.run(ctx, "xfs_db", "-r", "-c", "version", device)
	if err != nil {
		t.Fatal(err)
	}
	for _, newer := range []string{"NREXT64", "PARENT", "EXCHANGE", "METADIR"} {
		if strings.Contains(out, newer) {
			t.Errorf("a filesystem for Linux %s has %s: %s", OldestKernel, newer, out)
		}
	}
	for _, wanted := range []string{"CRC", "REFLINK", "BIGTIME", "INOBTCNT", "FINOBT"} {
		if !strings.Contains(out, wanted) {
			t.Errorf("%s is missing: %s", wanted, out)
		}
	}
}

func TestExt4FeaturesMountOnOldKernels(t *testing.T) {
	h := newHost(t, "mkfs.ext4", "dumpe2fs")
	ctx := testContext(t)
	device, _ := loop(t, 32<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4", Arguments: []string{"-O", "^huge_file", "-E", "stride=2"}}); err != nil {
		t.Fatal(err)
	}
	out, err := h.run(ctx, "dumpe2fs", "-h", device)
	if err != nil {
		t.Fatal(err)
	}
	_, features, _ := strings.Cut(out, "Filesystem features:")
	features, _, _ = strings.Cut(features, "\n")
	for _, newer := range []string{"orphan_file", "metadata_csum_seed", "huge_file"} {
		if strings.Contains(features, newer) {
			t.Errorf("has %s: %s", newer, features)
		}
	}
	if !strings.Contains(features, "metadata_csum") || !strings.Contains(features, "has_journal") {
		t.Errorf("features: %s", features)
	}
}

func TestMkfsArguments(t *testing.T) {
	knowsAll := mkfsFeatures{
		xfs:   "-m crc=0|1,finobt=0|1,rmapbt=0|1,reflink=0|1,inobtcount=0|1,bigtime=0|1,metadir=0|1 -i sparse=0|1,nrext64=0|1,exchange=0|1 -n parent=0|1",
		btrfs: "block-group-tree",
	}
	tests := map[string]struct {
		known   mkfsFeatures
		options FormatOptions
		want    string
	}{
		"xfs, newest tools": {knowsAll, FormatOptions{FSType: "xfs"},
			"-q -K -m crc=1 -m finobt=1 -m reflink=1 -m rmapbt=0 -m bigtime=1 -m inobtcount=1 -i sparse=1 -i nrext64=0 -i exchange=0 -n parent=0 -m metadir=0"},
		"xfs, old tools":      {mkfsFeatures{xfs: "crc=0|1,finobt=0|1"}, FormatOptions{FSType: "xfs"}, "-q -K -m crc=1 -m finobt=1"},
		"xfs, caller's key":   {mkfsFeatures{xfs: "crc= rmapbt="}, FormatOptions{FSType: "xfs", Arguments: []string{"-m", "rmapbt=1"}}, "-q -K -m crc=1 -m rmapbt=1"},
		"xfs, overwriting":    {mkfsFeatures{}, FormatOptions{FSType: "xfs", Overwrite: true}, "-q -K -f"},
		"btrfs, newest tools": {knowsAll, FormatOptions{FSType: "btrfs"}, "-q -K -O ^block-group-tree"},
		"ext4": {knowsAll, FormatOptions{FSType: "ext4", Arguments: []string{"-b", "1024", "-E", "stride=2", "-O", "^64bit"}},
			"-q -F -m 0 -O " + ext4Features + ",^64bit -E nodiscard,stride=2 -b 1024"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			switch test.options.FSType {
			case "xfs":
				got = xfsArguments(test.known, test.options)
			case "ext4":
				got = ext4Arguments(test.options)
			default:
				got = btrfsArguments(test.known, test.options)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("arguments:\n %s\nwant:\n %s", strings.Join(got, " "), test.want)
			}
		})
	}
}

func TestFormatNeedsOverwriteOnAnyOtherFilesystem(t *testing.T) {
	h := newHost(t, "mkfs.xfs", "mkfs.ext4")
	ctx := testContext(t)
	device, _ := loop(t, 320<<20)
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs"}); err == nil {
		t.Error("mkfs.xfs overwrote an ext4 filesystem")
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "xfs", Overwrite: true}); err != nil {
		t.Error(err)
	}
	if err := h.Format(ctx, FormatOptions{Device: device, FSType: "ntfs"}); !errors.Is(err, volume.ErrUnsupported) {
		t.Errorf("unknown type: %v", err)
	}
}

func TestContentOfWhatIsNoFilesystem(t *testing.T) {
	const size = 320 << 20
	tests := map[string]struct {
		write func(t *testing.T, h *Host, device string)
		want  string
	}{
		"nothing":                {func(*testing.T, *Host, string) {}, "nothing"},
		"one byte in the middle": {writeAt(size/2, "x"), "nothing"}, // outside of where signatures are
		"one byte at the start":  {writeAt(700<<10, "x"), "data that is no known filesystem"},
		"one byte at the end":    {writeAt(size-1, "x"), "data that is no known filesystem"},
		"partition table":        {writeAt(446, "\x00\x02\x03\x00\x83\x04\x05\x06\x08\x00\x00\x00\x10\x00\x00\x00", 510, "\x55\xaa"), "a partition table of type dos"},
		"swap":                   {writeAt(4086, "SWAPSPACE2", 1024, "\x01\x00\x00\x00\xff\x00\x00\x00"), "a filesystem of type swap"},
		"interrupted mkfs.xfs": {func(t *testing.T, h *Host, device string) {
			if err := h.Format(t.Context(), FormatOptions{Device: device, FSType: "xfs"}); err != nil {
				t.Fatal(err)
			}
			writeAt(126, "\x01")(t, h, device) // sb_inprogress
		}, "an incomplete filesystem of type xfs"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "blkid", "mkfs.xfs")
			device, _ := loop(t, size)
			test.write(t, h, device)
			content, err := h.Content(testContext(t), device)
			if err != nil || content.String() != test.want {
				t.Errorf("content: %q (%+v), %v; want %q", content, content, err, test.want)
			}
		})
	}
}

// writeAt writes pairs of an offset and data to the device.
func writeAt(pairs ...any) func(*testing.T, *Host, string) {
	return func(t *testing.T, h *Host, device string) {
		t.Helper()
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(pairs); i += 2 {
			offset, _ := pairs[i].(int)
			data, _ := pairs[i+1].(string)
			if _, err := f.WriteAt([]byte(data), int64(offset)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

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

func FuzzParseSuperblock(f *testing.F) {
	f.Add(make([]byte, superblockBytes))
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		padded := append(b, make([]byte, superblockBytes)...)
		if fsType, size := parseSuperblock(padded); (fsType == "") != (size == 0) || size < 0 {
			t.Errorf("type %q, size %d", fsType, size)
		}
	})
}
