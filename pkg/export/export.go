package export

import (
	"context"
	"fmt"
	"time"
)

// Kind names how a volume is exported.
type Kind string

// The kinds.
const (
	KindFUSE Kind = "fuse"
	KindLoop Kind = "loop"
)

// Export is one block device on the host.
type Export interface {
	// Kind says how it is made.
	Kind() Kind
	// Device is its path: /dev/loopN.
	Device() string
	// Resize makes the device size bytes long. What is behind it must have
	// that size already.
	Resize(ctx context.Context, size int64) error
	// Alive says whether the device still serves I/O.
	Alive() bool
	// Close removes the device. While it is mounted or open somewhere, Close
	// waits until ctx ends, then answers ErrPrecondition and leaves it usable;
	// it may be called again. If I/O of the device is stuck, Close answers
	// ErrUnavailable when ctx ends, and goes on in the background. The
	// block.Device or image behind it is the caller's to close, afterwards.
	Close(ctx context.Context) error
}

// poll calls done until it is true or ctx ends.
func poll(ctx context.Context, done func() bool) error {
	wait := 2 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		wait = min(2*wait, 100*time.Millisecond)
		timer.Reset(wait)
	}
}

// detached runs f, which may hang in the kernel, on a goroutine of its own and
// waits for it until ctx ends.
func detached(ctx context.Context, what string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}
