package store

import (
	"context"
	"time"
)

// DefaultRequestTimeout bounds a request whose context has no deadline.
const DefaultRequestTimeout = 5 * time.Second

// WithRequestTimeout returns ctx with a deadline: its own, or else one after
// timeout. Implementations call it first in every request, so that none can
// wait for ever on a dead store.
func WithRequestTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}
