package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// readRetryDelay is the pause before a read is tried again.
const readRetryDelay = 50 * time.Millisecond

// meaning wraps a request's error in the sentinel that fits. What this package
// decided itself wraps one already. Of the rest only a request that is too
// large is the caller's; everything else means that the store could not do it
// now (no connection, no leader, no space of its own, shutting down).
func (s *Store) meaning(ctx context.Context, err error) error {
	if slices.ContainsFunc(volume.Sentinels(), func(sentinel error) bool { return errors.Is(err, sentinel) }) {
		return err
	}
	switch {
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%w: %w", volume.ErrInvalid, err)
	case s.ctx.Err() != nil:
		// The request was under way when the connection was closed.
		return fmt.Errorf("%w: %w: %w", volume.ErrUnavailable, volume.ErrClosed, err)
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%w: %w: %w", volume.ErrUnavailable, ctx.Err(), err)
	}
	return fmt.Errorf("%w: %w", volume.ErrUnavailable, err)
}

// retryRead repeats a read that failed until ctx ends: reading twice harms
// nobody, and a connection that broke is often back at once. It gives up on
// what a repetition can't cure.
func retryRead(ctx context.Context, read func() error) error {
	for {
		err := read()
		if err == nil || ctx.Err() != nil || errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) {
			return err
		}
		select {
		case <-time.After(readRetryDelay):
		case <-ctx.Done():
			return err
		}
	}
}
