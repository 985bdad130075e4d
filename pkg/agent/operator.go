package agent

import (
	"context"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ListServing tells of the volumes that a node holds, and how far resyncs are.
func (c *Clients) ListServing(ctx context.Context, addr string) ([]volume.Serving, error) {
	r, err := callOperator(ctx, c, addr, func(ctx context.Context, o agentpb.OperatorClient) (*agentpb.ListServingResponse, error) {
		return o.ListServing(ctx, &agentpb.ListServingRequest{})
	})
	var out []volume.Serving
	for _, s := range r.GetServing() {
		v := volume.Serving{Volume: volume.ID(s.VolumeId), UID: volume.UID(s.VolumeUid), Epoch: volume.Epoch(s.Epoch), Repair: s.Repair}
		for _, l := range s.Replicas {
			v.Replicas = append(v.Replicas, volume.ServedReplica{
				Node: volume.NodeID(l.Node), State: volume.ReplicaState(l.State), Reason: l.Reason,
				Resyncing: l.Resyncing, DoneBytes: l.DoneBytes, TotalBytes: l.TotalBytes,
			})
		}
		out = append(out, v)
	}
	return out, err
}

// RetireReplica names a replica that no volume has any more.
type RetireReplica struct {
	Volume volume.ID
	UID    volume.UID
	// Epoch: a replica that has seen a higher one is another, and stays.
	Epoch volume.Epoch
	// Keep its files in the pool's trash.
	Keep bool
}

// RetireReplica removes a replica, or moves it to the trash; nil when there is
// none, ErrFenced when it has seen a higher epoch.
func (c *Clients) RetireReplica(ctx context.Context, addr string, o RetireReplica) error {
	_, err := callOperator(ctx, c, addr, func(ctx context.Context, a agentpb.OperatorClient) (*agentpb.RetireReplicaResponse, error) {
		return a.RetireReplica(ctx, &agentpb.RetireReplicaRequest{
			VolumeId: string(o.Volume), VolumeUid: string(o.UID), Epoch: uint64(o.Epoch), Keep: o.Keep,
		})
	})
	return err
}

// Record is what a node's replica knows of its volume.
type Record struct {
	Volume    volume.ID // empty when the replica's own record can't be read
	UID       volume.UID
	Pool      string
	SizeBytes int64
	Epoch     volume.Epoch // the highest that was presented to the replica
	Failure   string       // why it must not be trusted; empty when sound
	// Object is the volume's object as last seen in the store; nil when unknown.
	Object []byte
}

// ListRecords tells what a node's replicas know of their volumes.
func (c *Clients) ListRecords(ctx context.Context, addr string) ([]Record, error) {
	r, err := callOperator(ctx, c, addr, func(ctx context.Context, o agentpb.OperatorClient) (*agentpb.ListRecordsResponse, error) {
		return o.ListRecords(ctx, &agentpb.ListRecordsRequest{})
	})
	var out []Record
	for _, i := range r.GetRecords() {
		out = append(out, Record{
			Volume: volume.ID(i.VolumeId), UID: volume.UID(i.VolumeUid), Pool: i.Pool, SizeBytes: i.SizeBytes,
			Epoch: volume.Epoch(i.Epoch), Failure: i.Failure, Object: i.Object,
		})
	}
	return out, err
}

// callOperator is call for the Operator service of the same server.
func callOperator[R any](ctx context.Context, c *Clients, addr string, f func(context.Context, agentpb.OperatorClient) (R, error)) (R, error) {
	return call(ctx, c, addr, func(ctx context.Context, _ agentpb.AgentClient) (R, error) {
		conn, err := c.connected(addr)
		if err != nil {
			var none R
			return none, err
		}
		return f(ctx, agentpb.NewOperatorClient(conn))
	})
}
