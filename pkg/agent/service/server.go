package service

import (
	"context"
	"log/slog"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Replicas is what the server offers; replica.Server has it.
type Replicas interface {
	Create(ctx context.Context, o replica.CreateOptions) error
	Delete(ctx context.Context, id volume.ID, uid volume.UID) error
	Open(ctx context.Context, o replica.OpenOptions) (*replica.Session, error)
	Grow(ctx context.Context, uid volume.UID, epoch volume.Epoch, session volume.Session, size int64) error
	List() []replica.Info
	Session(uid volume.UID, epoch volume.Epoch, session volume.Session) (*replica.Session, error)
}

// Server implements agentpb.AgentServer.
type Server struct {
	agentpb.UnimplementedAgentServer
	replicas Replicas
	log      *slog.Logger
	// Operator is served too unless it is nil; set it before Serve.
	Operator *Operator
}

// New makes a server.
func New(r Replicas, log *slog.Logger) *Server { return &Server{replicas: r, log: log} }

// CreateReplica makes an empty replica.
func (s *Server) CreateReplica(ctx context.Context, r *agentpb.CreateReplicaRequest) (*agentpb.CreateReplicaResponse, error) {
	err := s.replicas.Create(ctx, replica.CreateOptions{
		Volume: volume.ID(r.VolumeId), UID: volume.UID(r.VolumeUid), Pool: r.Pool, SizeBytes: r.SizeBytes, Guaranteed: r.Guaranteed,
		Epoch: volume.Epoch(r.Epoch),
	})
	if err != nil {
		return nil, rpcerr.ToStatus(err)
	}
	s.log.Info("replica created", "volume", r.VolumeId, "replica", r.VolumeUid, "pool", r.Pool, "sizeBytes", r.SizeBytes)
	return &agentpb.CreateReplicaResponse{}, nil
}

// DeleteReplica removes a replica.
func (s *Server) DeleteReplica(ctx context.Context, r *agentpb.DeleteReplicaRequest) (*agentpb.DeleteReplicaResponse, error) {
	if err := s.replicas.Delete(ctx, volume.ID(r.VolumeId), volume.UID(r.VolumeUid)); err != nil {
		return nil, rpcerr.ToStatus(err)
	}
	s.log.Info("replica deleted", "volume", r.VolumeId, "replica", r.VolumeUid)
	return &agentpb.DeleteReplicaResponse{}, nil
}

// OpenReplica fences the replica and makes a session for an NBD connection.
func (s *Server) OpenReplica(ctx context.Context, r *agentpb.OpenReplicaRequest) (*agentpb.OpenReplicaResponse, error) {
	session, err := s.replicas.Open(ctx, replica.OpenOptions{
		Volume: volume.ID(r.VolumeId), UID: volume.UID(r.VolumeUid), Epoch: volume.Epoch(r.Epoch), Session: volume.Session(r.Session),
		Holder: volume.NodeID(r.Holder), Nonce: r.Nonce, Direct: r.Direct,
	})
	if err != nil {
		return nil, rpcerr.ToStatus(err)
	}
	s.log.Info("replica opened", "volume", r.VolumeId, "epoch", r.Epoch, "session", r.Session, "holder", r.Holder)
	return &agentpb.OpenReplicaResponse{SizeBytes: session.Size(), Incarnation: string(session.Incarnation())}, nil
}

// GrowReplica makes a replica larger, under its open session.
func (s *Server) GrowReplica(ctx context.Context, r *agentpb.GrowReplicaRequest) (*agentpb.GrowReplicaResponse, error) {
	err := s.replicas.Grow(ctx, volume.UID(r.VolumeUid), volume.Epoch(r.Epoch), volume.Session(r.Session), r.SizeBytes)
	if err != nil {
		return nil, rpcerr.ToStatus(err)
	}
	return &agentpb.GrowReplicaResponse{SizeBytes: r.SizeBytes}, nil
}

// ListReplicas tells what the node's pools hold.
func (s *Server) ListReplicas(context.Context, *agentpb.ListReplicasRequest) (*agentpb.ListReplicasResponse, error) {
	out := &agentpb.ListReplicasResponse{}
	for _, i := range s.replicas.List() {
		out.Replicas = append(out.Replicas, &agentpb.Replica{
			VolumeId: string(i.Volume), VolumeUid: string(i.UID), Pool: i.Pool, SizeBytes: i.SizeBytes,
			AllocatedBytes: i.AllocatedBytes, Epoch: uint64(i.Epoch), Session: uint32(i.Session), Failure: i.Failure,
		})
	}
	return out, nil
}
