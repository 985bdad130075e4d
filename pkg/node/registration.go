// Package node keeps this node's object in the store: who it is, where it can be
// reached, what its pools hold, and a heartbeat that renews its lease.
//
// It is not a failure detector: who judges a lease observes it (store.Liveness),
// by its own clock. Concurrency: Run's goroutine is the only writer.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options for New.
type Options struct {
	// Identity is the node's object without Pools, Heartbeat and Version.
	Identity volume.Node
	Nodes    store.Objects[volume.NodeID, volume.Node]
	Pools    func() []volume.Pool // measured with every heartbeat
	Logger   *slog.Logger
}

// Registration keeps the node's object fresh.
type Registration struct {
	opt Options

	mu   sync.Mutex
	self volume.Node // as last stored, or as it will be. Guarded by mu.
}

// renewals is how often a lease is renewed in its time: a heartbeat or two may
// be lost or late.
const renewals = 4

// New checks the options.
func New(opt Options) (*Registration, error) {
	switch {
	case opt.Identity.ID.Validate() != nil:
		return nil, opt.Identity.ID.Validate()
	case opt.Identity.Lease < time.Second:
		return nil, volume.Invalid("lease", opt.Identity.Lease.String(), "at least 1s")
	case opt.Nodes == nil, opt.Pools == nil, opt.Logger == nil:
		return nil, fmt.Errorf("registration: Nodes, Pools and Logger are required: %w", volume.ErrInvalid)
	}
	r := &Registration{opt: opt, self: opt.Identity.Clone()}
	r.self.Pools = opt.Pools()
	return r, nil
}

// Self is this node's object as last registered.
func (r *Registration) Self() volume.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.self.Clone()
}

// Run registers the node and renews its lease until ctx ends. A store that is
// away is tried again with the next renewal.
func (r *Registration) Run(ctx context.Context) error {
	t := time.NewTicker(r.opt.Identity.Lease / renewals)
	defer t.Stop()
	for {
		if err := r.renew(ctx, false); err != nil && ctx.Err() == nil {
			r.opt.Logger.Warn("lease not renewed", "node", r.opt.Identity.ID, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// Leave tells that this node serves nothing any more, so that nobody needs to
// wait for its lease. Call it after Run has ended.
func (r *Registration) Leave(ctx context.Context) error { return r.renew(ctx, true) }

// renew stores the node's object with the next heartbeat. What is stored under
// the node's name by an earlier process is replaced.
func (r *Registration) renew(ctx context.Context, leaving bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.opt.Identity.Lease/2)
	defer cancel()
	pools := r.opt.Pools()
	for {
		stored, err := r.opt.Nodes.Get(ctx, r.opt.Identity.ID)
		known := err == nil
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		n := r.opt.Identity.Clone()
		n.Version, n.Heartbeat, n.Pools, n.Leaving = stored.Version, stored.Heartbeat+1, pools, leaving
		n.Evicting = stored.Evicting
		if known {
			n, err = r.opt.Nodes.Update(ctx, n)
		} else {
			n, err = r.opt.Nodes.Create(ctx, n)
		}
		switch {
		case err == nil:
			r.mu.Lock()
			r.self = n
			r.mu.Unlock()
			return nil
		case errors.Is(err, volume.ErrConflict), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrNotFound):
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", err, ctx.Err())
			}
		default:
			return err
		}
	}
}
