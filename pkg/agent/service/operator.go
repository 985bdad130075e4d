package service

import (
	"context"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Keeper is what the operator's service needs of the node's replicas;
// replica.Server has it.
type Keeper interface {
	Retire(ctx context.Context, o replica.RetireOptions) error
	Records() []replica.Record
}

// Operator implements agentpb.OperatorServer.
type Operator struct {
	agentpb.UnimplementedOperatorServer
	Replicas Keeper
	// Serving tells of the volumes that the node holds; attach.Manager has it.
	Serving func() []volume.Serving
}

// ListServing tells of the volumes that the node holds.
func (o *Operator) ListServing(context.Context, *agentpb.ListServingRequest) (*agentpb.ListServingResponse, error) {
	out := &agentpb.ListServingResponse{}
	for _, s := range o.Serving() {
		v := &agentpb.Serving{VolumeId: string(s.Volume), VolumeUid: string(s.UID), Epoch: uint64(s.Epoch), Repair: s.Repair}
		for _, r := range s.Replicas {
			v.Replicas = append(v.Replicas, &agentpb.ServedReplica{
				Node: string(r.Node), State: string(r.State), Reason: r.Reason,
				Resyncing: r.Resyncing, DoneBytes: r.DoneBytes, TotalBytes: r.TotalBytes,
			})
		}
		out.Serving = append(out.Serving, v)
	}
	return out, nil
}

// RetireReplica removes a replica that no volume has any more, or moves it to the
// pool's trash.
func (o *Operator) RetireReplica(ctx context.Context, r *agentpb.RetireReplicaRequest) (*agentpb.RetireReplicaResponse, error) {
	err := o.Replicas.Retire(ctx, replica.RetireOptions{
		Volume: volume.ID(r.VolumeId), UID: volume.UID(r.VolumeUid), Epoch: volume.Epoch(r.Epoch), Keep: r.Keep,
	})
	if err != nil {
		return nil, rpcerr.ToStatus(err)
	}
	return &agentpb.RetireReplicaResponse{}, nil
}

// ListRecords tells what the node's replicas know of their volumes.
func (o *Operator) ListRecords(context.Context, *agentpb.ListRecordsRequest) (*agentpb.ListRecordsResponse, error) {
	out := &agentpb.ListRecordsResponse{}
	for _, r := range o.Replicas.Records() {
		if r.Session == 0 { // nobody has presented the epoch in which it was made
			r.Epoch = 0
		}
		out.Records = append(out.Records, &agentpb.Record{
			VolumeId: string(r.Volume), VolumeUid: string(r.UID), Pool: r.Pool, SizeBytes: r.SizeBytes,
			Epoch: uint64(r.Epoch), Failure: r.Failure, Object: r.Object,
		})
	}
	return out, nil
}
