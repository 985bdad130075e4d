package host

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// GrowOptions say which filesystem to grow to the size of its device.
type GrowOptions struct {
	Device string
	Path   string // where it is mounted, read-write
	FSType string
}

// Grow makes a mounted filesystem as large as its device. One that is so
// already is left as it is. ErrPrecondition when the kernel doesn't let this
// process do it (ext4 needs CAP_SYS_RESOURCE).
func (h *Host) Grow(ctx context.Context, o GrowOptions) error {
	var err error
	switch o.FSType {
	case "xfs":
		_, err = h.run(ctx, "xfs_growfs", "-d", o.Path)
	case "ext4":
		_, err = h.run(ctx, "resize2fs", o.Device)
	case "btrfs":
		_, err = h.run(ctx, "btrfs", "filesystem", "resize", "max", o.Path)
	default:
		return fmt.Errorf("grow a filesystem of type %q: %w", o.FSType, volume.ErrUnsupported)
	}
	var failed *commandError
	if errors.As(err, &failed) && strings.Contains(failed.Output, "Permission denied") {
		return fmt.Errorf("the kernel refuses to grow %s while mounted, without CAP_SYS_RESOURCE: %w (%w)",
			o.FSType, volume.ErrPrecondition, failed)
	}
	return err
}

// GrowUnmounted makes an unmounted ext4 filesystem as large as its device,
// after the check that resize2fs insists on. It needs no privilege, but time.
func (h *Host) GrowUnmounted(ctx context.Context, device string) error {
	_, err := h.run(ctx, "e2fsck", "-f", "-p", device)
	var failed *commandError
	if errors.As(err, &failed) && failed.Code == 1 { // errors were found and corrected
		err = nil
	}
	if err != nil {
		return err
	}
	_, err = h.run(ctx, "resize2fs", device)
	return err
}
