package controller

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// maxAttempts bounds how often one call begins again: after a replica that could
// not be made, or after another controller was quicker.
const maxAttempts = 8

// errAgain says that the store has changed and the call is to look again.
var errAgain = errors.New("look again")

// Create makes the volume, or returns the one that has the name already if it is
// as asked for. It may be repeated after any error and any crash. Besides the
// errors of placement.Choose: ErrInvalid and ErrOutOfRange for a request that
// contradicts itself, ErrExists for a volume that is not as asked for,
// ErrPending when others keep changing it, ErrUnavailable when the store or the
// nodes don't answer.
func (c *Controller) Create(ctx context.Context, req CreateRequest) (volume.Volume, error) {
	if err := checkCreate(req); err != nil {
		return volume.Volume{}, err
	}
	cr := creation{
		c: c, req: req, id: volume.IDFor(req.Spec.Name),
		away: map[volume.NodeID]string{}, refused: map[placement.Placement]string{},
	}
	last := volume.ErrPending
	for range maxAttempts {
		v, err := cr.attempt(ctx)
		if !errors.Is(err, errAgain) {
			if err == nil {
				c.addConditions(&v)
			}
			return v, err
		}
		if cr.failure != nil {
			last = cr.failure
		}
		if ctx.Err() != nil {
			return volume.Volume{}, fmt.Errorf("create volume %s: %w: %w", cr.id, last, ctx.Err())
		}
	}
	return volume.Volume{}, fmt.Errorf("create volume %s: gave up after %d attempts: %w", cr.id, maxAttempts, last)
}

func checkCreate(req CreateRequest) error {
	s := req.Spec
	if err := volume.ValidateName(s.Name); err != nil {
		return err
	}
	switch p := s.Params; {
	case s.SizeBytes <= 0 || s.SizeBytes%volume.SizeUnit != 0:
		return volume.Invalid("size", fmt.Sprint(s.SizeBytes), fmt.Sprintf("a positive multiple of %d bytes", volume.SizeUnit))
	case p.Replicas < 1 || p.Replicas > 5:
		return volume.Invalid("parameters.replicas", fmt.Sprint(p.Replicas), "a whole number from 1 to 5")
	case s.SizeBytes < volume.MinSizeBytes:
		return fmt.Errorf("size of %d bytes: the smallest volume has %d: %w", s.SizeBytes, volume.MinSizeBytes, volume.ErrOutOfRange)
	case s.SizeBytes < req.RequiredBytes, req.LimitBytes > 0 && s.SizeBytes > req.LimitBytes:
		return fmt.Errorf("size of %d bytes is not between the required %d and the limit %d: %w",
			s.SizeBytes, req.RequiredBytes, req.LimitBytes, volume.ErrOutOfRange)
	}
	return nil
}

// creation is one call of Create. It has one goroutine.
type creation struct {
	c   *Controller
	req CreateRequest
	id  volume.ID
	// Places that failed during this call; it doesn't try them again.
	away    map[volume.NodeID]string
	refused map[placement.Placement]string
	failure error // the last one
}

// attempt goes as far as it can with what the store says now; errAgain when that
// has changed.
func (cr *creation) attempt(ctx context.Context) (volume.Volume, error) {
	c := cr.c
	v, err := c.volumes.Get(ctx, cr.id)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		v, err = cr.begin(ctx)
		if err != nil {
			return v, err
		}
	case err != nil:
		return v, fmt.Errorf("get volume %s: %w", cr.id, err)
	case v.Status.Phase == volume.PhaseDeleting:
		return v, again(c.bury(ctx, v))
	}
	if err := compatible(&v, cr.req); err != nil {
		return volume.Volume{}, err
	}
	fits, err := cr.fitsTopology(ctx, &v)
	switch {
	case err != nil:
		return volume.Volume{}, err
	case v.Status.Phase == volume.PhaseReady && fits:
		return v, nil
	case v.Status.Phase == volume.PhaseReady:
		return volume.Volume{}, fmt.Errorf("volume %s exists, and is not accessible from the topology asked for: %w", v.ID, volume.ErrExists)
	case !fits: // half-created for another topology; nobody was told of it
		return v, again(c.abandon(ctx, v))
	}
	return cr.finish(ctx, v)
}

// again turns success, and having been overtaken, into errAgain.
func again(err error) error {
	if err == nil || errors.Is(err, volume.ErrConflict) {
		return errAgain
	}
	return err
}

// begin chooses places and makes the volume's object, in PhaseCreating.
func (cr *creation) begin(ctx context.Context) (volume.Volume, error) {
	cl, err := cr.c.cluster(ctx)
	if err != nil {
		return volume.Volume{}, err
	}
	for n, why := range cr.away {
		cl.Away[n] = why
	}
	cl.Refused = cr.refused
	places, err := placement.Choose(placement.Request{
		Cluster: cl, Params: cr.req.Spec.Params, SizeBytes: cr.req.Spec.SizeBytes,
		Requisite: cr.req.Requisite, Preferred: cr.req.Preferred,
	})
	if err != nil {
		return volume.Volume{}, fmt.Errorf("place volume %s: %w", cr.id, err)
	}
	v := volume.Volume{ID: cr.id, UID: volume.UID(uuid.NewString()), Spec: cr.req.Spec}
	v.Status.Phase = volume.PhaseCreating
	for _, p := range places {
		place := volume.Place{Node: p.Node, Pool: p.Pool, ID: uuid.NewString(), Made: true} // before the volume is ready
		v.Spec.Places = append(v.Spec.Places, place)
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{
			Node: p.Node, Pool: p.Pool, ID: place.ID, State: volume.InSync, Since: cr.c.opt.Now().UTC(), // all are empty, so all are equal
		})
	}
	v, err = cr.c.volumes.Create(ctx, v)
	if errors.Is(err, volume.ErrExists) {
		return v, errAgain
	}
	if err != nil {
		return v, fmt.Errorf("record volume %s: %w", cr.id, err)
	}
	return v, nil
}

// finish makes the replicas and then the volume ready. If a replica can't be
// made the volume is given up, and the next attempt goes elsewhere.
func (cr *creation) finish(ctx context.Context, v volume.Volume) (volume.Volume, error) {
	failed, err := cr.makeReplicas(ctx, &v)
	switch {
	case err != nil:
		return volume.Volume{}, err
	case failed && ctx.Err() != nil:
		// The caller's time is up: that says nothing about the nodes. The volume
		// stays as it is; a repeated call goes on with it.
		return volume.Volume{}, fmt.Errorf("create volume %s: %w: %w", v.ID, cr.failure, ctx.Err())
	case failed:
		cr.c.log.InfoContext(ctx, "a replica can't be made, placing the volume anew", "volume", v.ID, "uid", v.UID, "error", cr.failure)
		return volume.Volume{}, again(cr.c.abandon(ctx, v))
	}
	v.Status.Phase = volume.PhaseReady
	v.Status.SizeBytes = v.Spec.SizeBytes
	v.Status.Clean = true
	now, err := cr.c.volumes.Update(ctx, v)
	switch {
	case errors.Is(err, volume.ErrConflict), errors.Is(err, volume.ErrNotFound):
		return volume.Volume{}, errAgain
	case err != nil:
		return volume.Volume{}, fmt.Errorf("record volume %s as ready: %w", v.ID, err)
	}
	cr.c.log.InfoContext(ctx, "volume created", "volume", v.ID, "uid", v.UID, "name", v.Spec.Name, "sizeBytes", v.Spec.SizeBytes, "replicas", nodesOf(&v))
	return now, nil
}

// makeReplicas asks every agent at once, and notes who could not.
func (cr *creation) makeReplicas(ctx context.Context, v *volume.Volume) (failed bool, err error) {
	addrs, err := cr.c.addresses(ctx)
	if err != nil {
		return false, err
	}
	errs := make([]error, len(v.Status.Replicas))
	var g errgroup.Group
	for i, r := range v.Status.Replicas {
		addr, ok := addrs[r.Node]
		if !ok {
			errs[i] = fmt.Errorf("its lease is stale or it left: %w", volume.ErrUnavailable)
			continue
		}
		g.Go(func() error {
			callCtx, cancel := context.WithTimeout(ctx, cr.c.opt.AgentTimeout)
			defer cancel()
			errs[i] = cr.c.opt.Agents.CreateReplica(callCtx, addr, NewReplica{
				Volume: v.ID, UID: v.UID, Pool: r.Pool, SizeBytes: v.Spec.SizeBytes, Guaranteed: v.LoopOnly(), Epoch: v.Status.Epoch,
			})
			return nil
		})
	}
	_ = g.Wait() // its functions return nil; errs has what happened
	for i, r := range v.Status.Replicas {
		if errs[i] == nil {
			continue
		}
		failed = true
		cr.failure = fmt.Errorf("create replica on node %s: %w", r.Node, errs[i])
		if unreachable(errs[i]) {
			cr.away[r.Node] = "did not make a replica: " + errs[i].Error()
		} else {
			cr.refused[placement.Placement{Node: r.Node, Pool: r.Pool}] = errs[i].Error()
		}
	}
	return failed, nil
}

func unreachable(err error) bool {
	return errors.Is(err, volume.ErrUnavailable) || errors.Is(err, volume.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// compatible says whether an existing volume is what was asked for.
func compatible(v *volume.Volume, req CreateRequest) error {
	differs := func(what string, has, wants any) error {
		return fmt.Errorf("volume %s of this name has %s %v, not %v: %w", v.ID, what, has, wants, volume.ErrExists)
	}
	size := v.Spec.SizeBytes
	switch {
	case size < req.RequiredBytes:
		return differs("size", size, fmt.Sprintf("at least %d", req.RequiredBytes))
	case req.LimitBytes > 0 && size > req.LimitBytes:
		return differs("size", size, fmt.Sprintf("at most %d", req.LimitBytes))
	case v.Spec.Params != req.Spec.Params:
		return differs("parameters", fmt.Sprintf("%+v", v.Spec.Params), fmt.Sprintf("%+v", req.Spec.Params))
	case v.Spec.Block != req.Spec.Block:
		return differs("raw block mode", v.Spec.Block, req.Spec.Block)
	case v.Spec.FSType != req.Spec.FSType:
		return differs("filesystem", fmt.Sprintf("%q", v.Spec.FSType), fmt.Sprintf("%q", req.Spec.FSType))
	}
	return nil
}

// fitsTopology says whether an existing volume's places are where they were
// asked for. A finished volume with preferred locality can be used from
// everywhere, so it always is.
func (cr *creation) fitsTopology(ctx context.Context, v *volume.Volume) (bool, error) {
	preferred := v.Spec.Params.Locality != volume.LocalityStrict
	if len(cr.req.Requisite) == 0 || preferred && v.Status.Phase == volume.PhaseReady {
		return true, nil
	}
	nodes, err := cr.c.nodes.List(ctx)
	if err != nil {
		return false, fmt.Errorf("list nodes: %w", err)
	}
	var places []placement.Placement
	for _, r := range v.Status.Replicas {
		places = append(places, placement.Placement{Node: r.Node, Pool: r.Pool})
	}
	return placement.Satisfies(nodes, places, placement.Request{Params: v.Spec.Params, Requisite: cr.req.Requisite}), nil
}

func nodesOf(v *volume.Volume) []volume.NodeID {
	var nodes []volume.NodeID
	for _, r := range v.Status.Replicas {
		nodes = append(nodes, r.Node)
	}
	return nodes
}
