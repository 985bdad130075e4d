package kubelet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// NodeTimeout is kubelet's deadline for a call to a node plugin.
	NodeTimeout = 2 * time.Minute
	// ControllerTimeout is what the sidecars are given for a call.
	ControllerTimeout = time.Minute
	// pollEvery is how often Await looks.
	pollEvery = 50 * time.Millisecond
)

// call connects to a socket, as kubelet does for every call, and makes one call
// with a deadline: timeout, unless ctx has an earlier one.
func call(ctx context.Context, socket string, timeout time.Duration, do func(context.Context, *grpc.ClientConn) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return do(ctx, conn)
}

// Code is the gRPC code of an error; OK for nil.
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Code()
	}
	return codes.Unknown
}

// Await polls until check returns nil. When ctx ends it says what was awaited,
// and what check said last.
func Await(ctx context.Context, what string, check func(context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		}
	}
}

// Persist repeats a call until it succeeds, as kubelet and the sidecars do,
// which take no error for the last word, but for one: INVALID_ARGUMENT.
func Persist(ctx context.Context, what string, do func(context.Context) error) error {
	var final error
	err := Await(ctx, what, func(ctx context.Context) error {
		err := do(ctx)
		if Code(err) == codes.InvalidArgument {
			final = err
			return nil
		}
		return err
	})
	return errors.Join(final, err)
}
