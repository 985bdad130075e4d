package node

import (
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// formatAction is what to do with a device before it is mounted.
type formatAction uint8

const (
	useIt    formatAction = iota + 1 // it holds the volume's filesystem
	makeIt                           // mkfs on a blank device
	remakeIt                         // mkfs over what an unfinished mkfs left
	checkIt                          // it looks complete, but mkfs never said so: if it mounts, keep it, else remakeIt
)

// decideFormat is the rule by which mkfs runs or not, from what the store says
// and what the device holds. It is pure.
//
//	store       device              action
//	never       blank               make
//	never       anything else       refuse: not ours to overwrite
//	formatting  blank               make
//	formatting  the filesystem      check: mkfs ended, but its end wasn't recorded
//	formatting  another filesystem  refuse: mkfs can't have made that
//	formatting  other data          remake: nobody has used the volume yet
//	formatted   the filesystem      use
//	formatted   blank               alarm: the data is gone
//	formatted   anything else       alarm: the data was overwritten
func decideFormat(f volume.Format, c host.Content, want string) (formatAction, error) {
	switch f.State {
	case volume.FormatNever:
		if c.Blank {
			return makeIt, nil
		}
		return 0, fmt.Errorf("the volume was never formatted by Holdfast, but holds %s; it is not overwritten: %w", c, volume.ErrPrecondition)
	case volume.FormatBegun:
		switch {
		case c.Blank:
			return makeIt, nil
		case c.FSType == want:
			return checkIt, nil
		case c.FSType != "":
			return 0, fmt.Errorf("formatting the volume as %s was begun, but it holds %s; it is not overwritten: %w", want, c, volume.ErrPrecondition)
		}
		return remakeIt, nil
	case volume.FormatDone:
		if c.FSType == f.FSType && f.FSType == want {
			return useIt, nil
		}
		if c.FSType == f.FSType {
			return 0, fmt.Errorf("the volume is formatted as %s and can't be mounted as %s: %w", f.FSType, want, volume.ErrPrecondition)
		}
		return 0, &dataLossError{formatted: f.FSType, found: c}
	}
	return 0, fmt.Errorf("unknown format state %q: %w", f.State, volume.ErrFormatVersion)
}

// ensureFilesystem makes sure that the device holds the volume's filesystem. It
// returns what the device holds then.
func (s *Service) ensureFilesystem(ctx context.Context, v volume.Volume, device, want string) (host.Content, error) {
	content, err := s.host.Content(ctx, device)
	if err != nil {
		return host.Content{}, err
	}
	action, err := decideFormat(v.Status.Format, content, want)
	if err != nil {
		return host.Content{}, err
	}
	if action == checkIt {
		if err := s.host.CheckMountable(ctx, device, want); err == nil {
			s.log.Info("mkfs had ended before it could be recorded; the filesystem is kept", "volume", v.ID, "fsType", want)
			return content, s.setFormat(ctx, v.ID, volume.Format{State: volume.FormatDone, FSType: want})
		}
		if ctx.Err() != nil { // it didn't fail, it was not given the time
			return host.Content{}, fmt.Errorf("check the filesystem: %w", ctx.Err())
		}
		action = remakeIt
	}
	if action == useIt {
		return content, nil
	}
	if err := s.format(ctx, v, host.FormatOptions{Device: device, FSType: want, Overwrite: action == remakeIt}); err != nil {
		return host.Content{}, err
	}
	return s.host.Content(ctx, device)
}

// format records that mkfs begins, runs it, makes its result durable, and
// records that it ended. If an answer of the store is lost in between, the next
// staging finds "formatting" and goes on from there.
func (s *Service) format(ctx context.Context, v volume.Volume, o host.FormatOptions) error {
	arguments, err := csi.ParseMkfsOptions(o.FSType, v.Spec.Params.MkfsOptions)
	if err != nil {
		return err
	}
	o.Arguments = arguments
	if err := s.setFormat(ctx, v.ID, volume.Format{State: volume.FormatBegun, FSType: o.FSType}); err != nil {
		return err
	}
	s.log.Info("formatting", "volume", v.ID, "device", o.Device, "fsType", o.FSType, "overwrite", o.Overwrite)
	if err := s.host.Format(ctx, o); err != nil {
		return fmt.Errorf("format volume %s: %w", v.ID, err)
	}
	if err := s.host.Sync(ctx, o.Device); err != nil {
		return fmt.Errorf("format volume %s: %w", v.ID, err)
	}
	return s.setFormat(ctx, v.ID, volume.Format{State: volume.FormatDone, FSType: o.FSType})
}

func (s *Service) setFormat(ctx context.Context, id volume.ID, f volume.Format) error {
	if err := s.attacher.SetFormat(ctx, id, f); err != nil {
		return fmt.Errorf("record %q for volume %s: %w", f.State, id, err)
	}
	return nil
}
