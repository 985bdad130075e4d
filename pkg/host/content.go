package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Content is what a device holds.
type Content struct {
	// Blank: no known signature, and the first and last MiB read as zeroes.
	Blank bool
	// FSType: a complete filesystem's superblock, by the name mount(8) knows.
	FSType string
	// FSBytes is the filesystem's size, 0 when it isn't one of ours.
	FSBytes int64
	// Other describes anything else: a partition table, data without signature.
	Other string
}

// String says what the device holds, for people.
func (c Content) String() string {
	switch {
	case c.Blank:
		return "nothing"
	case c.FSType != "":
		return "a filesystem of type " + c.FSType
	}
	return c.Other
}

// edgeBytes is how much of both ends of a device has to be zero for Blank: all
// signatures known to us or blkid lie there.
const edgeBytes = 1 << 20

// Content reads what a block device holds, without changing it.
func (h *Host) Content(ctx context.Context, device string) (Content, error) {
	edges, err := beside(ctx, func() ([]byte, error) { return readEdges(device) })
	if err != nil {
		return Content{}, fmt.Errorf("read %s: %w", device, err)
	}
	if fsType, size := parseSuperblock(edges); fsType != "" {
		return Content{FSType: fsType, FSBytes: size}, nil
	}
	probed, err := h.blkid(ctx, device)
	if err != nil || probed != (Content{}) {
		return probed, err
	}
	if len(bytes.Trim(edges, "\x00")) == 0 {
		return Content{Blank: true}, nil
	}
	return Content{Other: "data that is no known filesystem"}, nil
}

// readEdges reads the first and the last MiB.
func readEdges(device string) ([]byte, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size < superblockBytes {
		return nil, fmt.Errorf("only %d bytes large: %w", size, volume.ErrOutOfRange)
	}
	edge := min(size, edgeBytes)
	buf := make([]byte, 2*edge)
	if _, err := f.ReadAt(buf[:edge], 0); err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(buf[edge:], size-edge); err != nil {
		return nil, err
	}
	return buf, nil
}

// blkid asks for all other signatures. An empty Content means none.
func (h *Host) blkid(ctx context.Context, device string) (Content, error) {
	out, err := h.run(ctx, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	var failed *commandError
	if errors.As(err, &failed) {
		switch failed.Code {
		case 2: // nothing found
			return Content{}, nil
		case 8: // ambivalent
			return Content{Other: "several signatures that contradict each other"}, nil
		}
	}
	if err != nil {
		return Content{}, err
	}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "TYPE":
			if ourType(value) {
				// By its superblock it is not complete, or we had recognised it.
				return Content{Other: "an incomplete filesystem of type " + value}, nil
			}
			return Content{FSType: value}, nil
		case "PTTYPE":
			return Content{Other: "a partition table of type " + value}, nil
		}
	}
	return Content{}, nil
}

func ourType(fsType string) bool { return fsType == "xfs" || fsType == "ext4" || fsType == "btrfs" }

// CheckMountable mounts the device's filesystem read-only in a private place
// and unmounts it again. It tells a complete filesystem from one whose mkfs was
// interrupted.
func (h *Host) CheckMountable(ctx context.Context, device, fsType string) (err error) {
	if err := os.MkdirAll(h.scratch, 0o700); err != nil {
		return fmt.Errorf("make a place to mount: %w", err)
	}
	dir, err := os.MkdirTemp(h.scratch, "check-")
	if err != nil {
		return fmt.Errorf("make a place to mount: %w", err)
	}
	defer func() { err = errors.Join(err, h.Remove(dir)) }()
	if err := h.Mount(ctx, MountOptions{Device: device, Target: dir, FSType: fsType, Options: []string{"ro"}}); err != nil {
		return err
	}
	return h.Unmount(context.WithoutCancel(ctx), dir)
}

// Sweep takes away what a CheckMountable of an earlier process left mounted.
func (h *Host) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(h.scratch)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(h.scratch, e.Name())
		if err := errors.Join(h.UnmountLazily(ctx, dir), h.Remove(dir)); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	return nil
}

// DeviceSize is the size of a block device in bytes.
func (h *Host) DeviceSize(ctx context.Context, device string) (int64, error) {
	return beside(ctx, func() (int64, error) {
		f, err := os.Open(device)
		if err != nil {
			return 0, fmt.Errorf("size of device: %w", err)
		}
		defer f.Close()
		return f.Seek(0, io.SeekEnd)
	})
}

// SetAccess makes a block device refuse writes, whoever opens it, or accept
// them again.
func (h *Host) SetAccess(ctx context.Context, device string, a Access) error {
	return h.system(ctx, "set "+device+" "+string(a), func() error {
		f, err := os.Open(device)
		if err != nil {
			return err
		}
		defer f.Close()
		value := 0
		if a == ReadOnly {
			value = 1
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value)
	})
}

// Sync makes durable what was written to a block device through the page cache.
func (h *Host) Sync(ctx context.Context, device string) error {
	return h.system(ctx, "flush", func() error {
		f, err := os.Open(device)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}

// InUse says whether a filesystem of this block device is mounted in any mount
// namespace, which /proc/self/mountinfo can't tell: an exclusive opening is then
// refused.
func (h *Host) InUse(ctx context.Context, device string) (bool, error) {
	return beside(ctx, func() (bool, error) {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return false, unix.Close(fd)
		case errors.Is(err, unix.EBUSY):
			return true, nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO):
			return false, nil
		}
		return false, fmt.Errorf("open %s: %w", device, err)
	})
}
