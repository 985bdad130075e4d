package host

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Usage is how full a filesystem is. Inodes are 0 for filesystems that have no
// fixed number of them.
type Usage struct {
	TotalBytes, UsedBytes, AvailableBytes int64
	TotalInodes, UsedInodes, FreeInodes   int64
}

// Usage asks a mounted filesystem how full it is. ErrNotFound when there is no
// such path, ErrUnavailable when its device is dead.
func (h *Host) Usage(ctx context.Context, path string) (Usage, error) {
	return once(ctx, h, "usage "+path, func() (Usage, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return Usage{}, pathError("ask for the usage of", path, err)
		}
		size := st.Bsize
		return Usage{
			TotalBytes:     int64(st.Blocks) * size,
			UsedBytes:      int64(st.Blocks-st.Bfree) * size,
			AvailableBytes: int64(st.Bavail) * size,
			TotalInodes:    int64(st.Files),
			UsedInodes:     int64(st.Files - st.Ffree),
			FreeInodes:     int64(st.Ffree),
		}, nil
	})
}

// Alive reads a mounted filesystem's root. ErrUnavailable when its device is
// dead, or the filesystem has shut down because of I/O errors.
func (h *Host) Alive(ctx context.Context, path string) error {
	_, err := once(ctx, h, "alive "+path, func() (struct{}, error) {
		_, err := os.Lstat(path)
		return struct{}{}, pathError("look at", path, err)
	})
	return err
}

// once runs f beside the caller; calls for the same key that come while it runs
// share its result, because each would pin a thread while a device hangs.
func once[T any](ctx context.Context, h *Host, key string, f func() (T, error)) (T, error) {
	var none T
	select {
	case r := <-h.flights.DoChan(key, func() (any, error) { return f() }):
		if r.Err != nil {
			return none, r.Err
		}
		v, _ := r.Val.(T)
		return v, nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func pathError(what, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s %s: %w", what, path, volume.ErrNotFound)
	case mountutils.IsCorruptedMnt(err), errors.Is(err, unix.ESHUTDOWN):
		return fmt.Errorf("%s %s: %w: %w", what, path, volume.ErrUnavailable, err)
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}
