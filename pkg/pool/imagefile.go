package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// openOrMakeImage returns the image file, locked.
func openOrMakeImage(ctx context.Context, o ImageOptions) (*os.File, error) {
	file, err := openLocked(ctx, o.Path, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := makeImage(ctx, o); err != nil {
			return nil, err
		}
		file, err = openLocked(ctx, o.Path, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := checkImage(file, o); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// openLocked opens a file that keeps its name while the lock is awaited: a file
// that was renamed or replaced meanwhile is opened anew.
func openLocked(ctx context.Context, path string, flags int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(regular(f), lockExclusive(ctx, f)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		mine, err1 := f.Stat()
		now, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, now) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// partSuffix is added to the name of an image that is being made.
const partSuffix = ".tmp"

// makeImage makes the image under a temporary name and renames it when there is
// a complete file system in it.
func makeImage(ctx context.Context, o ImageOptions) (err error) {
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return err
	}
	tmp := o.Path + partSuffix
	f, err := openLocked(ctx, tmp, os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
		err = errors.Join(err, f.Close())
	}()
	if _, err := os.Lstat(o.Path); err == nil {
		return os.Remove(tmp) // another process made it while this one waited
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := preallocate(f, o.SizeBytes); err != nil {
		return err
	}
	if err := makeXFS(ctx, tmp); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, o.Path); err != nil {
		return err
	}
	o.Logger.Info("made an image-file pool", "image", o.Path, "sizeBytes", o.SizeBytes)
	return OS{}.SyncDir(filepath.Dir(o.Path))
}

// ImageNeeds is how many bytes OpenImage will take from the host for an image:
// none when it exists, and less than its size when a killed process left a part.
func ImageNeeds(path string, sizeBytes int64) (int64, error) {
	_, err := os.Lstat(path)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	var part unix.Stat_t
	err = unix.Lstat(path+partSuffix, &part)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("stat %s: %w", path+partSuffix, err)
	}
	const statBlock = 512 // bytes, on every file system
	return max(0, sizeBytes-part.Blocks*statBlock), nil
}

// preallocate gives every block of the file space on the host, so that the
// pool's XFS never meets a full host.
func preallocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("the host's file system can't allocate a file's space in advance: %w", volume.ErrUnsupported)
		default:
			return fmt.Errorf("allocate %d bytes on the host: %w", size, noSpace(err))
		}
	}
}

// checkImage refuses files that were not made by makeImage, and fills holes
// that somebody punched.
func checkImage(f *os.File, o ImageOptions) error {
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != "XFSB" {
		return fmt.Errorf("there is no XFS in this file; it is left as it is, remove it or name another: %w", volume.ErrCorrupt)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != o.SizeBytes {
		o.Logger.Warn("an existing image keeps its size", "image", o.Path, "sizeBytes", st.Size(), "wantedBytes", o.SizeBytes)
	}
	if err := preallocate(f, st.Size()); err != nil {
		// What is in it must be reachable all the same.
		o.Logger.Warn("the image has holes that the host can't fill", "image", o.Path, "error", err)
	}
	return nil
}
