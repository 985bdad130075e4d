package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// MinImageBytes is the smallest image: XFS wants 300 MiB.
const MinImageBytes = 300 << 20

// ImageOptions says which file holds an image-file pool, and where to mount it.
type ImageOptions struct {
	Path       string // the image file, absolute; made when it does not exist
	MountPoint string // made when it does not exist
	// SizeBytes is the size of a new image; rounded down to 4096. An image that
	// exists keeps its size.
	SizeBytes int64
	Logger    *slog.Logger // nil means none
}

// Image is a mounted image file with XFS in it, for hosts whose own file system
// has no reflink. Its MountPoint is then a pool's directory.
type Image struct {
	opts ImageOptions
	file *os.File // holds the flock
	// device is the loop device's number ("major:minor"), once mounted.
	device string
}

// OpenImage makes the image file when there is none, and mounts it. It may be
// repeated after a kill at any point: a half-made image is made anew, a mount or
// a loop device that a killed process left is taken over. It never runs mkfs on
// a file that has its final name.
//
// Errors: ErrInvalid (options), ErrNoSpace (the host can't hold SizeBytes),
// ErrUnsupported (no loop devices, no mkfs.xfs), ErrCorrupt (the file has no XFS
// in it), ErrPrecondition (in use by another process, or something else is
// mounted there). After an error nothing of it is left.
func OpenImage(ctx context.Context, o ImageOptions) (*Image, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	file, err := openOrMakeImage(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", o.Path, err)
	}
	im := &Image{opts: o, file: file}
	if err := im.mount(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("image %s: %w", o.Path, err), file.Close())
	}
	return im, nil
}

// Validate says whether OpenImage can use the options, whatever the paths hold:
// ErrInvalid names the field.
func (o *ImageOptions) Validate() error {
	for field, path := range map[string]string{"image": o.Path, "mount": o.MountPoint} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			return volume.Invalid("pool."+field, path, "an absolute path without '.', '..' or a trailing '/'")
		}
	}
	if o.SizeBytes < MinImageBytes {
		return volume.Invalid("pool.size", strconv.FormatInt(o.SizeBytes, 10), fmt.Sprintf("at least %d bytes", MinImageBytes))
	}
	return nil
}

func (o *ImageOptions) complete() error {
	if err := o.Validate(); err != nil {
		return err
	}
	o.SizeBytes -= o.SizeBytes % sectorBytes
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// mount brings the image to its mount point, or finds it there.
func (im *Image) mount(ctx context.Context) error {
	if err := os.MkdirAll(im.opts.MountPoint, 0o700); err != nil {
		return err
	}
	resolved, err := filepath.EvalSymlinks(im.opts.MountPoint) // as the kernel names it
	if err != nil {
		return err
	}
	im.opts.MountPoint = resolved
	st, err := inode(im.file)
	if err != nil {
		return err
	}
	dev, err := findLoop(st)
	if err != nil {
		return err
	}
	adopted := dev != nil
	if !adopted {
		if dev, err = attachLoop(ctx, im.file); err != nil {
			return err
		}
	}
	// The mount holds the device from here on; without one, closing it unbinds it.
	defer dev.Close()
	if err := forbidDiscard(dev); err != nil {
		im.opts.Logger.Warn("a trim of the host could take the image's space away", "image", im.opts.Path, "error", err)
	}
	if err := im.mountDevice(dev); err != nil {
		return err
	}
	im.opts.Logger.Info("image-file pool is mounted", "image", im.opts.Path, "mount", im.opts.MountPoint,
		"device", dev.Name(), "direct", isDirect(dev), "adopted", adopted)
	return nil
}

func (im *Image) mountDevice(dev *os.File) error {
	want, err := deviceNumber(dev)
	if err != nil {
		return err
	}
	im.device = want
	have, mounted, err := mountedAt(im.opts.MountPoint)
	switch {
	case err != nil:
		return err
	case mounted && have == want:
		return nil
	case mounted:
		return fmt.Errorf("another file system (device %s) is mounted at %s: %w", have, im.opts.MountPoint, volume.ErrPrecondition)
	}
	err = unix.Mount(dev.Name(), im.opts.MountPoint, "xfs", unix.MS_NOATIME, "")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("this kernel has no XFS: %w", volume.ErrUnsupported)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("mount %s at %s: %w", dev.Name(), im.opts.MountPoint, err)
	}
	return fmt.Errorf("its XFS can't be mounted (%w; the kernel's log has the reason): %w", err, volume.ErrCorrupt)
}

// Close unmounts the image and detaches its loop device, waiting for users to
// leave until ctx ends. ErrPrecondition when somebody still uses it, such as a
// loop device on a replica: then it stays mounted, keeps serving, and a later
// OpenImage takes it over.
func (im *Image) Close(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, closePatience)
		defer cancel()
	}
	err := im.unmount(ctx)
	if err == nil {
		err = im.awaitDetached(ctx)
	}
	if err != nil {
		err = fmt.Errorf("image %s: %w", im.opts.Path, err)
	}
	return errors.Join(err, im.file.Close())
}

func (im *Image) unmount(ctx context.Context) error {
	for {
		have, mounted, err := mountedAt(im.opts.MountPoint)
		if err != nil {
			return err
		}
		if !mounted || have != im.device {
			return nil // somebody unmounted it; what is there now isn't ours
		}
		err = unix.Unmount(im.opts.MountPoint, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", im.opts.MountPoint, err)
		}
		if !pause(ctx) {
			return fmt.Errorf("%s is still in use: %w", im.opts.MountPoint, volume.ErrPrecondition)
		}
	}
}

// awaitDetached waits until the loop device has unbound itself, and unbinds it
// when it was attached by someone without autoclear.
func (im *Image) awaitDetached(ctx context.Context) error {
	st, err := inode(im.file)
	if err != nil {
		return err
	}
	for {
		dev, err := findLoop(st)
		if err != nil || dev == nil {
			return err
		}
		// With the last user gone this unbinds at once, else with the last one.
		_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0) // ENXIO: gone meanwhile
		if err := dev.Close(); err != nil {
			return err
		}
		if !pause(ctx) {
			return fmt.Errorf("%s stays attached: %w", dev.Name(), volume.ErrPrecondition)
		}
	}
}

// closePatience bounds waiting in Close when ctx has no deadline.
const closePatience = 10 * time.Second

// pause waits a moment; false when ctx ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}
