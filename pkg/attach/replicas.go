package attach

import (
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Replicas opens sessions for the mirrors: in this process where the replica is
// this node's own, without a socket; else fenced over the agent's gRPC and
// served over NBD.
type Replicas struct {
	Node   volume.NodeID
	Local  *replica.Server
	Agents *agent.Clients
	// Addresses finds a node.
	Addresses func(ctx context.Context, node volume.NodeID) (volume.Node, error)
}

// Open implements mirror.Replicas.
func (r *Replicas) Open(ctx context.Context, q mirror.OpenRequest) (mirror.Leg, error) {
	if q.Replica.Node == r.Node {
		return r.openLocal(ctx, q)
	}
	return r.openRemote(ctx, q)
}

func (r *Replicas) openLocal(ctx context.Context, q mirror.OpenRequest) (mirror.Leg, error) {
	s, err := r.Local.Open(ctx, replica.OpenOptions{
		Volume: q.Volume, UID: q.UID, Epoch: q.Epoch, Session: q.Session, Holder: q.Holder, Nonce: q.Nonce, Direct: q.Direct, OnEnd: q.OnFail,
	})
	if err != nil {
		return nil, fmt.Errorf("open local replica: %w", err)
	}
	if s.Size() < q.Size {
		if err := s.Grow(ctx, q.Size); err != nil {
			_ = s.Close() // nothing was written through it
			return nil, fmt.Errorf("grow local replica: %w", err)
		}
	}
	return replica.Async{Session: s}, nil
}

func (r *Replicas) openRemote(ctx context.Context, q mirror.OpenRequest) (mirror.Leg, error) {
	node, err := r.Addresses(ctx, q.Replica.Node)
	if err != nil {
		return nil, fmt.Errorf("find node %s: %w", q.Replica.Node, err)
	}
	opened, err := r.Agents.OpenReplica(ctx, node.AgentAddr, agent.OpenReplica{
		Volume: q.Volume, UID: q.UID, Epoch: q.Epoch, Session: q.Session, Holder: q.Holder, Nonce: q.Nonce, Direct: q.Direct,
	})
	if err != nil {
		return nil, fmt.Errorf("open replica on %s: %w", node.ID, err)
	}
	if opened.SizeBytes < q.Size {
		if err := r.growRemote(ctx, node.AgentAddr, q, q.Size); err != nil {
			return nil, fmt.Errorf("grow replica on %s: %w", node.ID, err)
		}
	}
	name := replica.Name{Volume: q.Volume, UID: q.UID, Epoch: q.Epoch, Session: q.Session}
	c, err := nbd.Dial(ctx, nbd.DialOptions{Addr: node.ReplicaAddr, Name: name.String(), OnFail: q.OnFail})
	if err != nil {
		return nil, fmt.Errorf("connect to replica on %s: %w", node.ID, err)
	}
	return &remoteLeg{Client: c, tracker: r.tracker(node.AgentAddr, q), incarnation: opened.Incarnation, grow: func(ctx context.Context, size int64) error {
		return r.growRemote(ctx, node.AgentAddr, q, size)
	}}, nil
}

func (r *Replicas) growRemote(ctx context.Context, addr string, q mirror.OpenRequest, size int64) error {
	return r.Agents.GrowReplica(ctx, addr, agent.GrowReplica{UID: q.UID, Epoch: q.Epoch, Session: q.Session, SizeBytes: size})
}

// remoteLeg is an NBD connection that can grow its replica through the agent.
type remoteLeg struct {
	*nbd.Client
	tracker
	incarnation volume.Incarnation
	grow        func(context.Context, int64) error
}

// Incarnation implements mirror.Leg.
func (l *remoteLeg) Incarnation() volume.Incarnation { return l.incarnation }

// Grow implements mirror.Leg.
func (l *remoteLeg) Grow(ctx context.Context, size int64) error {
	if err := l.grow(ctx, size); err != nil {
		return err
	}
	l.GrewTo(size)
	return nil
}
