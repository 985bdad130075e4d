package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// clearStaging takes away what is mounted at the staging path of the device that
// the volume had before, or a filesystem that has shut down. What else is mounted
// there is refused.
func (s *Service) clearStaging(ctx context.Context, want record, dead string) error {
	path, err := s.host.Inspect(ctx, want.Path)
	if err != nil {
		return err
	}
	for i := len(path.Mounts) - 1; i >= 0; i-- {
		m := path.Mounts[i]
		switch {
		case want.Device != "" && m.Source == want.Device && s.host.Alive(ctx, want.Path) == nil:
			return nil
		case m.Source == want.Device, dead != "" && m.Source == dead:
			s.log.Warn("unmounting a dead filesystem", "volume", want.Volume, "path", want.Path, "device", m.Source)
			if err := s.host.UnmountLazily(ctx, want.Path); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is mounted with %s: %w", want.Path, m, volume.ErrPrecondition)
		}
	}
	return nil
}

// refuseForeign refuses a staging path where something else is mounted, before
// anything is done.
func (s *Service) refuseForeign(ctx context.Context, want record) error {
	path, err := s.host.Inspect(ctx, want.Path)
	if err != nil {
		return err
	}
	attached, _ := s.attacher.Get(want.Volume)
	for _, m := range path.Mounts {
		if m.Source != want.Device && m.Source != attached.Device {
			return fmt.Errorf("%s is mounted with %s: %w", want.Path, m, volume.ErrPrecondition)
		}
	}
	return nil
}

// mount formats if need be, and mounts at the staging path if that isn't done.
func (s *Service) mount(ctx context.Context, v volume.Volume, want record) error {
	path, err := s.host.Inspect(ctx, want.Path)
	if err != nil {
		return err
	}
	if _, mounted := path.Top(); mounted { // by an earlier call, which crashed
		return nil
	}
	content, err := s.ensureFilesystem(ctx, v, want.Device, want.FSType)
	if err != nil {
		return err
	}
	options := host.MountOptions{Device: want.Device, Target: want.Path, FSType: want.FSType, Options: mountOptions(want)}
	if err := s.host.Mount(ctx, options); err != nil {
		return fmt.Errorf("mount at %s: %w", want.Path, err)
	}
	if err := s.host.Alive(ctx, want.Path); err != nil {
		return err
	}
	if want.readOnly() {
		return nil
	}
	return s.growAtStaging(ctx, options, content)
}

func mountOptions(r record) []string {
	options := r.MountFlags
	if r.readOnly() {
		options = append([]string{"ro"}, options...)
	}
	return options
}

// growAtStaging grows the filesystem of a volume that was expanded while nobody
// used it. A filesystem that can't be grown now is of use all the same.
func (s *Service) growAtStaging(ctx context.Context, o host.MountOptions, content host.Content) error {
	size, err := s.host.DeviceSize(ctx, o.Device)
	if err != nil {
		return err
	}
	// A filesystem ends at a whole block, and ext4 at a whole block group.
	if content.FSBytes == 0 || size-content.FSBytes < growSlack {
		return nil
	}
	err = s.host.Grow(ctx, host.GrowOptions{Device: o.Device, Path: o.Target, FSType: o.FSType})
	if err == nil || ctx.Err() != nil {
		return err
	}
	if o.FSType == "ext4" && errors.Is(err, volume.ErrPrecondition) {
		return s.growUnmounted(ctx, o)
	}
	s.log.Warn("the filesystem can't be grown to its volume's size", "device", o.Device, "path", o.Target, "error", err)
	return nil
}

// growSlack is by how much a device must be larger than its filesystem before
// growing is tried, in bytes.
const growSlack = 1 << 20

// growUnmounted grows ext4 where the kernel doesn't let this process do it
// online.
func (s *Service) growUnmounted(ctx context.Context, o host.MountOptions) error {
	if err := s.host.Unmount(ctx, o.Target); err != nil {
		return err
	}
	if err := s.host.GrowUnmounted(ctx, o.Device); err != nil {
		if ctx.Err() != nil {
			return err
		}
		s.log.Warn("the filesystem can't be grown to its volume's size", "device", o.Device, "path", o.Target, "error", err)
	}
	return s.host.Mount(ctx, o)
}
