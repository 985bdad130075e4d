package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

type space struct{ capacity, free int64 } // bytes

// statfs asks the file system. Free is what root may use: XFS counts delayed
// allocations as used already.
func (p *Pool) statfs() (space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(int(p.dir.Fd()), &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return space{}, fmt.Errorf("statfs %s: %w", p.opts.Path, err)
		}
	}
	unit := st.Bsize
	return space{capacity: int64(st.Blocks) * unit, free: int64(st.Bavail) * unit}, nil
}

const advice = "use a directory on btrfs or on XFS made with \"mkfs.xfs -m reflink=1\", or let Holdfast make an image-file pool (image=FILE,size=BYTES,mount=DIR)"

// CanHold says whether a directory's file system can hold replicas, by trying.
// ErrUnsupported when it can't (says what to do); any other error means that it
// can't be told.
func CanHold(dir string) error {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := checkFilesystem(d); err != nil {
		return err
	}
	return probeReflink(OS{}, dir)
}

// checkFilesystem refuses what can't hold replicas.
func checkFilesystem(dir *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	switch uint32(st.Type) {
	case unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return nil
	}
	return fmt.Errorf("its file system (%s) can't share blocks between files; %s: %w", fsName(uint32(st.Type)), advice, volume.ErrUnsupported)
}

func fsName(magic uint32) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	}
	return fmt.Sprintf("type %#x", magic)
}

// probeReflink tries to clone a file, because XFS may have been made without
// reflink. It runs on first use only: later the pool may be full.
func probeReflink(fs FS, dir string) (err error) {
	from, to := filepath.Join(dir, probePrefix+"a"), filepath.Join(dir, probePrefix+"b")
	defer func() { err = errors.Join(err, fs.RemoveAll(from), fs.RemoveAll(to)) }()
	src, err := os.OpenFile(from, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("its file system has no reflink (%w); %s: %w", err, advice, volume.ErrUnsupported)
	}
	return nil
}

// noSpace adds ErrNoSpace to what the kernel calls it.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w (%w)", volume.ErrNoSpace, err)
	}
	return err
}
