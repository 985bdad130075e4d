package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// maxCollects bounds the volumes that one pass works on at the same time.
const maxCollects = 8

// Run reconciles until ctx ends: it finishes deletions, gives up volumes that
// were left half-created, removes replicas of deleted volumes from nodes that
// come back, and reports orphans. Any number of controllers may Run.
func (c *Controller) Run(ctx context.Context) error {
	r := newReconciler(c)
	tick := time.NewTicker(c.opt.ReconcileInterval)
	defer tick.Stop()
	for {
		if err := r.pass(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "reconciling failed in part, and will be repeated", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-c.nudge:
		}
	}
}

// reconciler is what a controller remembers between two passes, none of which
// matters when it is lost: ages begin anew. It has one goroutine.
type reconciler struct {
	c         *Controller
	unchanged map[volume.ID]sight // since when each object has its version
	lastSweep time.Time
	orphans   []heldReplica // as of the last sweep

	awaySince map[volume.NodeID]time.Time // since when each node is away, as seen here
	obstacles map[volume.ID]string        // what keeps a volume from its places, as last logged
	refused   map[placement.Placement]refusal
	strays    map[heldReplica]bool // replicas of volumes that don't list them, as of the last sweep
	missing   map[string]bool      // replicas, by ID, that their node did not have in the last sweep
	gone      map[string]bool      // nor in the one before
}

type sight struct {
	version int64
	since   time.Time // by this process's clock
}

func newReconciler(c *Controller) *reconciler {
	return &reconciler{
		c: c, unchanged: map[volume.ID]sight{}, awaySince: map[volume.NodeID]time.Time{}, obstacles: map[volume.ID]string{},
		refused: map[placement.Placement]refusal{},
	}
}

// pass looks at all volumes once.
func (r *reconciler) pass(ctx context.Context) error {
	all, err := r.c.volumes.List(ctx)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	ages := r.observe(all)
	var g errgroup.Group
	g.SetLimit(maxCollects)
	var done []volume.Volume // tombstones that have nothing left to do
	errs := make([]error, len(all))
	for i, v := range all {
		switch {
		case isTombstone(&v) && len(v.Status.Replicas) == 0:
			if ages[v.ID] >= r.c.opt.TombstoneGrace {
				done = append(done, v)
			}
		case isTombstone(&v):
			g.Go(func() error { errs[i] = r.c.collect(ctx, v.ID); return nil })
		case v.Status.Phase == volume.PhaseDeleting,
			v.Status.Phase == volume.PhaseCreating && ages[v.ID] >= r.c.opt.CreateDeadline:
			g.Go(func() error { errs[i] = ignoreConflict(r.c.abandon(ctx, v)); return nil })
		}
	}
	_ = g.Wait() // its functions return nil
	errs = append(errs, r.placeAll(ctx))
	if now := r.c.opt.Now(); len(done) > 0 || r.lastSweep.IsZero() || now.Sub(r.lastSweep) >= r.c.opt.SweepInterval {
		r.lastSweep = now
		errs = append(errs, r.sweepAndForget(ctx, done))
	}
	return errors.Join(errs...)
}

// observe returns for how long each object has been unchanged in our eyes.
func (r *reconciler) observe(all []volume.Volume) map[volume.ID]time.Duration {
	now := r.c.opt.Now()
	ages := make(map[volume.ID]time.Duration, len(all))
	seen := make(map[volume.ID]sight, len(all))
	for _, v := range all {
		s, ok := r.unchanged[v.ID]
		if !ok || s.version != v.Version {
			s = sight{version: v.Version, since: now}
		}
		seen[v.ID] = s
		ages[v.ID] = now.Sub(s.since)
	}
	r.unchanged = seen
	return ages
}

// sweepAndForget looks at what all nodes hold, and drops the tombstones whose
// grace is over if no replica of theirs turned up.
func (r *reconciler) sweepAndForget(ctx context.Context, done []volume.Volume) error {
	s, err := r.sweep(ctx)
	errs := []error{err} // one replica that can't be removed must not hold up the others' tombstones
	for _, t := range done {
		switch {
		case s.late[t.UID]:
			delete(r.unchanged, t.ID) // its grace begins anew
		case s.complete:
			if err := r.c.volumes.Delete(ctx, t); err != nil && !errors.Is(err, volume.ErrNotFound) {
				errs = append(errs, ignoreConflict(fmt.Errorf("remove tombstone %s: %w", t.ID, err)))
			}
		}
	}
	return errors.Join(errs...)
}

// ignoreConflict: somebody else was quicker, and the next pass will see.
func ignoreConflict(err error) error {
	if errors.Is(err, volume.ErrConflict) {
		return nil
	}
	return err
}
