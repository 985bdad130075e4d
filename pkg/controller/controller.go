package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Agents reaches the agents of the nodes, by address (host:port). Each call ends
// with its context; a peer that can't be reached or doesn't answer in time is
// ErrUnavailable. All of them may be repeated.
type Agents interface {
	// CreateReplica makes an empty replica; nil if it is there already. ErrNoSpace
	// when the pool's limits don't allow it, ErrNotFound when there is no such pool.
	CreateReplica(ctx context.Context, addr string, r NewReplica) error
	// DeleteReplica removes a replica; nil if there is none.
	DeleteReplica(ctx context.Context, addr string, id volume.ID, uid volume.UID) error
	// RetireReplica removes a replica that was taken off a volume which lives on, or
	// moves it to the pool's trash; nil if there is none, ErrFenced when it has seen
	// a higher epoch than the order.
	RetireReplica(ctx context.Context, addr string, o RetireReplica) error
	// ListReplicas tells what the node's pools hold.
	ListReplicas(ctx context.Context, addr string) ([]HeldReplica, error)
}

// NewReplica is a replica to be made.
type NewReplica struct {
	Volume     volume.ID
	UID        volume.UID
	Pool       string
	SizeBytes  int64
	Guaranteed bool // the pool must keep room for all of SizeBytes
	// Epoch is the volume's: whoever was overtaken before must not take the new
	// replica for one that was on the same node.
	Epoch volume.Epoch
}

// RetireReplica is a replica that its volume has no more.
type RetireReplica struct {
	Volume volume.ID
	UID    volume.UID
	Epoch  volume.Epoch // the volume's when it was taken off
	Keep   bool         // in the pool's trash
}

// HeldReplica is a replica that a node has.
type HeldReplica struct {
	Volume volume.ID
	UID    volume.UID
	Pool   string
}

// Liveness says whether a node's lease is fresh; store.Liveness has it.
type Liveness interface {
	Fresh(node volume.NodeID) bool
}

// Options are what a Controller needs.
type Options struct {
	Store    store.Store
	Agents   Agents
	Liveness Liveness
	Logger   *slog.Logger
	// Now is the clock, for ages within this process and for the times that
	// people read in objects; nil means time.Now. Times of two processes are
	// never compared.
	Now func() time.Time

	// AgentTimeout bounds one call to one agent; default 5 s.
	AgentTimeout time.Duration
	// CreateDeadline is how long a volume may stay half-created without a change
	// until the reconciler gives it up; default 5 min.
	CreateDeadline time.Duration
	// TombstoneGrace is how long a tombstone outlives its last replica. It must be
	// longer than a CreateReplica can be under way; default 1 min.
	TombstoneGrace time.Duration
	// ReconcileInterval is the time between two looks at all volumes; default 5 s.
	ReconcileInterval time.Duration
	// ReplaceAfter is how long a node must stay away until its replicas are replaced
	// by others elsewhere; default 10 min.
	ReplaceAfter time.Duration
	// SweepInterval is the time between two looks at what all nodes hold; default 1 min.
	SweepInterval time.Duration
}

// Controller implements the CSI controller's Provisioner.
type Controller struct {
	opt     Options
	volumes store.Objects[volume.ID, volume.Volume]
	nodes   store.Objects[volume.NodeID, volume.Node]
	log     *slog.Logger
	nudge   chan struct{} // has room for one; wakes the reconciler
}

// New makes a Controller. Its calls work without Run; Run collects what they
// could not.
func New(opt Options) *Controller {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	opt.AgentTimeout = cmp.Or(opt.AgentTimeout, 5*time.Second)
	opt.CreateDeadline = cmp.Or(opt.CreateDeadline, 5*time.Minute)
	opt.TombstoneGrace = cmp.Or(opt.TombstoneGrace, time.Minute)
	opt.ReconcileInterval = cmp.Or(opt.ReconcileInterval, 5*time.Second)
	opt.ReplaceAfter = cmp.Or(opt.ReplaceAfter, 10*time.Minute)
	opt.SweepInterval = cmp.Or(opt.SweepInterval, time.Minute)
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Controller{
		opt: opt, volumes: opt.Store.Volumes(), nodes: opt.Store.Nodes(),
		log: opt.Logger, nudge: make(chan struct{}, 1),
	}
}

// Get returns a volume that is ready, with the conditions that the controller
// sees added to the mirror's; ErrNotFound for all others.
func (c *Controller) Get(ctx context.Context, id volume.ID) (volume.Volume, error) {
	v, err := c.ready(ctx, id)
	if err != nil {
		return v, err
	}
	c.addConditions(&v)
	return v, nil
}

// ready reads a volume that is ready, as it is in the store.
func (c *Controller) ready(ctx context.Context, id volume.ID) (volume.Volume, error) {
	if id.Validate() != nil { // so nothing has it
		return volume.Volume{}, fmt.Errorf("volume %q: %w", string(id), volume.ErrNotFound)
	}
	v, err := c.volumes.Get(ctx, id)
	if err != nil {
		return volume.Volume{}, fmt.Errorf("get volume %s: %w", id, err)
	}
	if v.Status.Phase != volume.PhaseReady {
		return volume.Volume{}, fmt.Errorf("volume %s is %s: %w", id, v.Status.Phase, volume.ErrNotFound)
	}
	return v, nil
}

// List returns the volumes that are ready, sorted by ID, with conditions as Get.
func (c *Controller) List(ctx context.Context) ([]volume.Volume, error) {
	all, err := c.volumes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	ready := all[:0]
	for _, v := range all {
		if v.Status.Phase == volume.PhaseReady {
			c.addConditions(&v)
			ready = append(ready, v)
		}
	}
	return ready, nil
}

// Capacity tells what could be created now, in bytes. A volume as large as
// Maximum can be created unless somebody else takes the room first.
func (c *Controller) Capacity(ctx context.Context, req CapacityRequest) (Capacity, error) {
	cl, err := c.cluster(ctx)
	if err != nil {
		return Capacity{}, err
	}
	has := placement.CapacityFor(placement.CapacityRequest{Cluster: cl, Params: req.Params, Topology: req.Topology})
	return Capacity{Available: has.Available, Maximum: has.Maximum, Minimum: volume.MinSizeBytes}, nil
}

// Topology tells from where a volume can be used: with strict locality from the
// nodes of its replicas, else (nil) from anywhere.
func (c *Controller) Topology(_ context.Context, v volume.Volume) ([]map[string]string, error) {
	if v.Spec.Params.Locality != volume.LocalityStrict {
		return nil, nil
	}
	var from []map[string]string
	for _, r := range v.Status.Replicas {
		from = append(from, map[string]string{volume.TopologyHost: string(r.Node)})
	}
	return from, nil
}

// Ready is nil when the store answers; else ErrUnavailable.
func (c *Controller) Ready(ctx context.Context) error {
	if _, err := c.nodes.List(ctx); err != nil {
		return fmt.Errorf("the store does not answer: %w: %w", volume.ErrUnavailable, err)
	}
	return nil
}

// cluster reads what placement needs. The nodes are read last: who is away is
// judged as late as can be.
func (c *Controller) cluster(ctx context.Context) (placement.Cluster, error) {
	volumes, err := c.volumes.List(ctx)
	if err != nil {
		return placement.Cluster{}, fmt.Errorf("list volumes: %w", err)
	}
	nodes, err := c.nodes.List(ctx)
	if err != nil {
		return placement.Cluster{}, fmt.Errorf("list nodes: %w", err)
	}
	cl := placement.Cluster{Volumes: volumes, Nodes: nodes, Away: map[volume.NodeID]string{}, Refused: map[placement.Placement]string{}}
	for i := range nodes {
		why := c.awayReason(&nodes[i])
		if why == "" && nodes[i].Evicting {
			why = "is being evicted"
		}
		if why != "" {
			cl.Away[nodes[i].ID] = why
		}
	}
	return cl, nil
}

// awayReason says why a node can't be used now; "" when it can.
func (c *Controller) awayReason(n *volume.Node) string {
	switch {
	case n.Leaving:
		return "is shutting down or was shut down"
	case !c.opt.Liveness.Fresh(n.ID):
		return "is away: its lease is stale"
	}
	return ""
}

// addresses returns the agents' addresses of the nodes that can be used now.
func (c *Controller) addresses(ctx context.Context) (map[volume.NodeID]string, error) {
	nodes, err := c.nodes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	addrs := make(map[volume.NodeID]string, len(nodes))
	for i := range nodes {
		if c.awayReason(&nodes[i]) == "" {
			addrs[nodes[i].ID] = nodes[i].AgentAddr
		}
	}
	return addrs, nil
}
