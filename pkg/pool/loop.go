package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// sectorBytes is the loop device's sector size. Direct I/O needs sectors at
// least as large as those of the disk below, and 4096 is the largest there is.
const sectorBytes = 4096

// findLoop returns the loop device whose backing file is the given inode,
// opened. Names are not compared: they change with mounts and renames, and
// /sys shortens them. Nil when there is none.
func findLoop(st *unix.Stat_t) (*os.File, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, path := range bound {
		name := strings.Split(path, "/")[3]
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		if err != nil {
			continue // unbound and removed since, or not ours to open
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Inode == st.Ino && info.Device == st.Dev {
			return dev, nil
		}
		if err := dev.Close(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// attachLoop binds a free loop device to file, with direct I/O where the host's
// file system has it, and returns it opened. The device unbinds itself with its
// last user (autoclear): a crash before it is mounted leaves nothing.
func attachLoop(ctx context.Context, file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices (%w): %w", err, volume.ErrUnsupported)
	}
	defer control.Close()
	// A description of its own: the loop device keeps it, and with ours it would
	// keep our lock after this process's end.
	backing, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	for {
		dev, err := tryAttach(control, backing, file.Name())
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return dev, err
		}
		// Somebody else took the free one first.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("attach a loop device: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func tryAttach(control, backing *os.File, name string) (*os.File, error) {
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: sectorBytes}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
	err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	if errors.Is(err, unix.EINVAL) { // no direct I/O on this file system
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", dev.Name(), err), dev.Close())
	}
	return dev, nil
}

// forbidDiscard keeps everybody from punching holes into the backing file
// through the device: the package comment says why.
func forbidDiscard(dev *os.File) error {
	path := filepath.Join("/sys/block", filepath.Base(dev.Name()), "queue/discard_max_bytes")
	if err := os.WriteFile(path, []byte("0"), 0); err != nil {
		return fmt.Errorf("switch discard off: %w", err)
	}
	return nil
}

// isDirect says whether the device reaches its file with direct I/O.
func isDirect(dev *os.File) bool {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	return err == nil && info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
}

func inode(f *os.File) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return &st, nil
}
