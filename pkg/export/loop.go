package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	// sectorBytes is the logical block size of every export.
	sectorBytes = 4096

	loopMajor = 7
	sysBlock  = "/sys/block"
)

// identity is what a loop device stands on.
type identity struct{ dev, ino uint64 }

func identityOf(info *unix.LoopInfo64) identity { return identity{info.Device, info.Inode} }

// loopDevice is one attached loop device.
type loopDevice struct {
	number  int
	backing identity
	name    string // as /sys/block/loopN/loop/backing_file has it

	mu      sync.Mutex
	pending chan struct{} // closed when a detach that was given up on has ended; nil: none
}

func (l *loopDevice) path() string { return fmt.Sprintf("/dev/loop%d", l.number) }

func (l *loopDevice) sys(elem ...string) string {
	return filepath.Join(append([]string{sysBlock, fmt.Sprintf("loop%d", l.number)}, elem...)...)
}

// attached says whether the loop device still stands on what it did. If it can,
// it opens nothing, because an opener keeps a device from being detached.
func (l *loopDevice) attached() bool {
	name, err := backingName(l.number)
	if err != nil || name == l.name {
		return err == nil
	}
	// Another file, or the same one after a rename or an unmount.
	f, info, err := loopStatus(l.number, unix.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	return identityOf(info) == l.backing
}

// direct says whether it does direct I/O.
func (l *loopDevice) direct() bool {
	b, err := os.ReadFile(l.sys("loop", "dio"))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// backingName is the path that the kernel shows for loop device n, or
// fs.ErrNotExist if it stands on nothing.
func backingName(n int) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysBlock, fmt.Sprintf("loop%d", n), "loop", "backing_file"))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// loopStatus opens loop device n and asks what it stands on. The caller closes
// the file; an unattached device answers ENXIO.
func loopStatus(n, flags int) (*os.File, *unix.LoopInfo64, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: LOOP_GET_STATUS64: %w", path, err), f.Close())
	}
	return f, info, nil
}

// attachLoop puts a free loop device on backing, which must be open read-write.
// name is a note of up to 63 bytes that LOOP_GET_STATUS64 shows.
func attachLoop(ctx context.Context, backing *os.File, name string) (*loopDevice, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer ctl.Close()
	renewed := false
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		l, err := configureLoop(n, backing, name)
		switch {
		case err == nil && !renewed && l.discardOff():
			renewed = true
			if err := renewLoop(ctx, ctl, l); err != nil {
				return nil, err
			}
		case err == nil || !errors.Is(err, unix.EBUSY):
			return l, err
		case ctx.Err() != nil: // else somebody was quicker to take it: try the next
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// discardOff says whether somebody switched discard off for this device number
// (queue/discard_max_bytes in sysfs). The kernel remembers that from one backing
// file to the next, and offers no way back.
func (l *loopDevice) discardOff() bool {
	now, err1 := os.ReadFile(l.sys("queue", "discard_max_bytes"))
	could, err2 := os.ReadFile(l.sys("queue", "discard_max_hw_bytes"))
	return err1 == nil && err2 == nil && strings.TrimSpace(string(now)) == "0" && strings.TrimSpace(string(could)) != "0"
}

// renewLoop replaces a device that has just been attached by a new one of the
// same number, unattached, which has the kernel's default settings.
func renewLoop(ctx context.Context, ctl *os.File, l *loopDevice) error {
	if err := l.detach(ctx); err != nil {
		return err
	}
	for _, op := range []uint{unix.LOOP_CTL_REMOVE, unix.LOOP_CTL_ADD} {
		err := unix.IoctlSetInt(int(ctl.Fd()), op, l.number)
		// EBUSY, EEXIST: somebody else uses it meanwhile. Then it stays.
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("renew %s: %w", l.path(), err)
		}
	}
	return nil
}

func configureLoop(n int, backing *os.File, name string) (*loopDevice, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	if err := ensureNode(path, n); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer f.Close()
	conf := &unix.LoopConfig{Fd: uint32(backing.Fd()), Size: sectorBytes}
	conf.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(conf.Info.File_name[:len(conf.Info.File_name)-1], name)
	if err := unix.IoctlLoopConfigure(int(f.Fd()), conf); err != nil {
		return nil, fmt.Errorf("put %s on %s: %w", path, backing.Name(), err)
	}
	l, err := describeLoop(f, n)
	if err != nil {
		return nil, errors.Join(err, clearFD(f))
	}
	return l, nil
}

// describeLoop fills in what identifies loop device n, which f has open.
func describeLoop(f *os.File, n int) (*loopDevice, error) {
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%s: LOOP_GET_STATUS64: %w", f.Name(), err)
	}
	name, err := backingName(n)
	if err != nil {
		return nil, fmt.Errorf("loop device %d: %w", n, err)
	}
	return &loopDevice{number: n, backing: identityOf(info), name: name}, nil
}

// ensureNode makes the device node if there is no devtmpfs that did, as in a
// container.
func ensureNode(path string, n int) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make device node %s: %w", path, err)
	}
	return nil
}

// loopNumbers lists the loop devices that stand on something.
func loopNumbers() ([]int, error) {
	names, err := filepath.Glob(filepath.Join(sysBlock, "loop*", "loop", "backing_file"))
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range names {
		if n, err := strconv.Atoi(strings.TrimPrefix(strings.Split(name, "/")[3], "loop")); err == nil {
			all = append(all, n)
		}
	}
	return all, nil
}

// findLoop finds the loop device that stands on the file at path. Only devices
// whose backing file has the same last path element are opened: others may
// belong to a stuck file system and hang.
func findLoop(path string) (*loopDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	numbers, err := loopNumbers()
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		name, err := backingName(n)
		if err != nil || filepath.Base(strings.TrimSuffix(name, " (deleted)")) != filepath.Base(path) {
			continue
		}
		f, info, err := loopStatus(n, unix.O_RDONLY)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		f.Close()
		if identityOf(info) == (identity{st.Dev, st.Ino}) {
			return &loopDevice{number: n, backing: identityOf(info), name: name}, nil
		}
	}
	return nil, fmt.Errorf("loop device on %s: %w", path, volume.ErrNotFound)
}

// resize makes the loop device take over the size of its backing file, which
// must be size bytes.
func (l *loopDevice) resize(size int64) error {
	f, info, err := loopStatus(l.number, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: %w", err, volume.ErrClosed)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if identityOf(info) != l.backing {
		return fmt.Errorf("%s stands on something else now: %w", l.path(), volume.ErrClosed)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("%s: LOOP_SET_CAPACITY: %w", l.path(), err)
	}
	got, err := l.size()
	if err == nil && got != size {
		err = fmt.Errorf("%s has %d bytes after being resized to %d: %w", l.path(), got, size, volume.ErrPrecondition)
	}
	return err
}

// size is the size of the device in bytes.
func (l *loopDevice) size() (int64, error) {
	b, err := os.ReadFile(l.sys("size"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", l.path(), err)
	}
	return n * 512, nil
}

// settle bounds the work of undoing a detach that came too late.
const settle = 2 * time.Second
