package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// LegResult tells the machine what a leg's or the store's error means. What is
// not known means that the leg can't be relied on: Lost.
func LegResult(err error) core.Result {
	switch {
	case err == nil:
		return core.OK
	case errors.Is(err, volume.ErrNoSpace):
		return core.NoSpace
	case errors.Is(err, volume.ErrFenced), errors.Is(err, volume.ErrClosed):
		return core.Fenced
	case errors.Is(err, volume.ErrFailed), errors.Is(err, volume.ErrCorrupt), errors.Is(err, volume.ErrFormatVersion):
		return core.Broken
	case errors.Is(err, volume.ErrInvalid), errors.Is(err, volume.ErrOutOfRange):
		return core.Refused
	}
	return core.Lost
}

// resultError is the error for a result that ended a request or the mirror.
func resultError(res core.Result, reason string) error {
	wrap := func(sentinel error) error { return fmt.Errorf("%s: %w", reason, sentinel) }
	switch res {
	case core.OK:
		return nil
	case core.NoSpace:
		return wrap(volume.ErrNoSpace)
	case core.Fenced:
		return wrap(volume.ErrFenced)
	case core.Broken:
		return wrap(volume.ErrFailed)
	case core.Refused:
		return wrap(volume.ErrClosed)
	}
	return wrap(volume.ErrUnavailable)
}

// OpenResult is LegResult for an opening: a replica that is not there, or that
// this node can't get right now, is only out of reach.
func OpenResult(err error) core.Result {
	switch res := LegResult(err); {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return core.Lost
	case errors.Is(err, volume.ErrClosed):
		return core.Lost
	case res == core.NoSpace, res == core.Refused:
		return core.Lost
	default:
		return res
	}
}
