package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const mountInfoPath = "/proc/self/mountinfo"

// Inspect tells what a path is and what is mounted there. The path must be
// absolute. A path whose parent is missing is KindMissing.
func (h *Host) Inspect(ctx context.Context, path string) (Path, error) {
	return beside(ctx, func() (Path, error) { return inspect(path) })
}

func inspect(path string) (Path, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return Path{Resolved: path, Kind: KindMissing}, nil
	}
	if err != nil {
		return Path{}, fmt.Errorf("resolve the parent of %s: %w", path, err)
	}
	p := Path{Resolved: filepath.Join(parent, filepath.Base(path))}
	all, err := mounts()
	if err != nil {
		return Path{}, err
	}
	for _, m := range all {
		if m.Path == p.Resolved {
			p.Mounts = append(p.Mounts, m)
		}
	}
	if len(p.Mounts) > 0 {
		p.Kind = KindMount
		return p, nil
	}
	return p, p.stat()
}

// stat fills in what an unmounted path is.
func (p *Path) stat() error {
	info, err := os.Lstat(p.Resolved)
	switch {
	case errors.Is(err, os.ErrNotExist):
		p.Kind = KindMissing
	case err != nil:
		return fmt.Errorf("inspect: %w", err)
	case info.IsDir():
		p.Kind = KindDirectory
		entries, err := os.ReadDir(p.Resolved)
		if err != nil {
			return fmt.Errorf("inspect: %w", err)
		}
		p.Empty = len(entries) == 0
	case info.Mode().IsRegular():
		p.Kind = KindFile
		p.Empty = info.Size() == 0
	case info.Mode()&os.ModeSymlink != 0:
		p.Kind = KindSymlink
	default:
		p.Kind = KindOther
	}
	return nil
}

// MountsOf lists the mounts of a block device's filesystem, and the places to
// which its device node is bound.
func (h *Host) MountsOf(_ context.Context, device string) ([]MountPoint, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var of []MountPoint
	for _, m := range all {
		if m.Of(device) {
			of = append(of, m)
		}
	}
	return of, nil
}

// Of says whether the mount is of device's filesystem or of its device node.
func (m MountPoint) Of(device string) bool {
	return m.Source == device || m.IsNode(device)
}

// IsNode says whether the mount is device's node, bound to a path.
func (m MountPoint) IsNode(device string) bool {
	dir, name := filepath.Split(device)
	return dir == "/dev/" && m.Root == "/"+name && (m.FSType == "devtmpfs" || m.FSType == "tmpfs")
}

func mounts() ([]MountPoint, error) {
	infos, err := mountutils.ParseMountInfo(mountInfoPath)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", mountInfoPath, err)
	}
	all := make([]MountPoint, 0, len(infos))
	for _, i := range infos {
		all = append(all, MountPoint{
			Path:     unescape(i.MountPoint),
			Source:   unescape(i.Source),
			FSType:   i.FsType,
			Device:   fmt.Sprintf("%d:%d", i.Major, i.Minor),
			Root:     unescape(i.Root),
			ReadOnly: has(i.MountOptions, "ro") || has(i.SuperOptions, "ro"),
		})
	}
	return all, nil
}

func has(list []string, word string) bool {
	for _, s := range list {
		if s == word {
			return true
		}
	}
	return false
}

// unescape undoes the kernel's octal escapes (seq_file's mangle: blank, tab,
// newline, backslash and '#').
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}

// MountOptions say what to mount.
type MountOptions struct {
	Device  string // a block device node
	Target  string // an existing directory
	FSType  string
	Options []string // as mount(8) -o takes them; checked by the caller
}

// Mount mounts a filesystem. It fails when the device doesn't hold one of that
// type, and with ErrUnsupported when the kernel doesn't know the type.
func (h *Host) Mount(ctx context.Context, o MountOptions) error {
	args := []string{"-t", o.FSType}
	options := o.Options
	if o.FSType == "xfs" && !has(options, "nouuid") {
		// Several replicas or copies of one filesystem may be mounted on a machine.
		options = append([]string{"nouuid"}, options...)
	}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	args = append(args, "--", o.Device, o.Target)
	_, err := h.run(ctx, "mount", args...)
	var failed *commandError
	if errors.As(err, &failed) && strings.Contains(failed.Output, "unknown filesystem type") {
		return fmt.Errorf("the kernel has no %s: %w (%w)", o.FSType, volume.ErrUnsupported, failed)
	}
	return err
}

// BindOptions say what to bind where.
type BindOptions struct {
	Source string // a mounted directory, or a block device node
	Target string // an existing directory, or file
	Access Access
}

// Bind makes Source appear at Target too. If the target shows Source already,
// call Rebind instead: Bind would stack a second mount.
func (h *Host) Bind(ctx context.Context, o BindOptions) error {
	err := h.system(ctx, "bind "+o.Source+" to "+o.Target, func() error {
		return unix.Mount(o.Source, o.Target, "", unix.MS_BIND, "")
	})
	if err != nil || o.Access == ReadWrite {
		return err
	}
	return h.Rebind(ctx, o)
}

// Rebind changes the access of a target that Bind made.
func (h *Host) Rebind(ctx context.Context, o BindOptions) error {
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT)
	if o.Access == ReadOnly {
		flags |= unix.MS_RDONLY
	}
	var st unix.Statfs_t
	if err := unix.Statfs(o.Source, &st); err == nil {
		flags |= inherited(st.Flags)
	}
	return h.system(ctx, "set "+o.Target+" "+string(o.Access), func() error {
		return unix.Mount("", o.Target, "", flags, "")
	})
}

// inherited translates the flags of a mount that a remount would otherwise
// drop (mount(2): all flags but those of the filesystem itself are replaced).
func inherited(st int64) uintptr {
	var flags uintptr
	for _, f := range []struct {
		st int64
		ms uintptr
	}{
		{unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV}, {unix.ST_NOEXEC, unix.MS_NOEXEC},
		{unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if st&f.st != 0 {
			flags |= f.ms
		}
	}
	return flags
}

// Unmount takes away the topmost mount at path; nothing mounted there is fine.
// ErrPrecondition when it is in use.
func (h *Host) Unmount(ctx context.Context, path string) error {
	return h.unmount(ctx, path, unix.UMOUNT_NOFOLLOW)
}

// UnmountLazily takes away the topmost mount at path even when it is in use:
// who has files open there keeps them. It is for filesystems whose device died.
func (h *Host) UnmountLazily(ctx context.Context, path string) error {
	return h.unmount(ctx, path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
}

func (h *Host) unmount(ctx context.Context, path string, flags int) error {
	err := h.system(ctx, "unmount "+path, func() error { return unix.Unmount(path, flags) })
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use: %w", path, volume.ErrPrecondition)
	}
	return err
}

// system makes a system call that may wait for a device.
func (h *Host) system(ctx context.Context, what string, call func() error) error {
	_, err := beside(ctx, func() (struct{}, error) { return struct{}{}, call() })
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// MakeDir makes a directory whose parent exists; one that exists is fine.
func (h *Host) MakeDir(path string) error {
	if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the target: %w", err)
	}
	return nil
}

// MakeFile makes an empty file whose parent exists; one that exists is fine, a
// link is not followed.
func (h *Host) MakeFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make the target: %w", err)
	}
	return f.Close()
}

// Remove removes an empty directory, or a file; nothing there is fine. A
// directory that is not empty is ErrPrecondition: nothing is ever removed
// recursively.
func (h *Host) Remove(path string) error {
	err := os.Remove(path)
	switch {
	case err == nil, errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: %w: %w", path, volume.ErrPrecondition, err)
	}
	return fmt.Errorf("remove the target: %w", err)
}
