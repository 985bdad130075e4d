package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// DefaultTimeout bounds a call whose context has no deadline.
const DefaultTimeout = 10 * time.Second

// Clients calls agents by address, with one connection each.
type Clients struct {
	timeout time.Duration // of a call whose context has no deadline

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn // Guarded by mu.
	closed bool                        // Guarded by mu.
}

// NewClients makes an empty set; connections are made when first needed.
func NewClients() *Clients {
	return &Clients{timeout: DefaultTimeout, conns: map[string]*grpc.ClientConn{}}
}

// Close closes all connections; calls under way end with ErrUnavailable, later
// ones with ErrClosed. It may be called twice.
func (c *Clients) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for addr, conn := range c.conns {
		errs = append(errs, conn.Close())
		delete(c.conns, addr)
	}
	return errors.Join(errs...)
}

// client returns a client for addr, connected or not.
func (c *Clients) client(addr string) (agentpb.AgentClient, error) {
	conn, err := c.connected(addr)
	if err != nil {
		return nil, err
	}
	return agentpb.NewAgentClient(conn), nil
}

// connected returns the address's connection, established or not.
func (c *Clients) connected(addr string) (*grpc.ClientConn, error) {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return nil, volume.Invalid("agent address", addr, "host:port")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, volume.ErrClosed
	}
	if conn := c.conns[addr]; conn != nil {
		return conn, nil
	}
	// A node that was away should be reached soon after it is back.
	retry := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 3 * time.Second}),
		grpc.WithNoProxy()) // a proxy for the web is no way to a node
	if err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrInvalid, err)
	}
	c.conns[addr] = conn
	return conn, nil
}

// call runs f with a client and a deadline, and gives its error back its
// meaning. A peer that can't be reached is reported at once, one that does not
// answer at the deadline.
func call[R any](ctx context.Context, c *Clients, addr string, f func(context.Context, agentpb.AgentClient) (R, error)) (R, error) {
	var none R
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	client, err := c.client(addr)
	if err != nil {
		return none, fmt.Errorf("agent %s: %w", addr, err)
	}
	r, err := f(ctx, client)
	if err == nil {
		return r, nil
	}
	err = rpcerr.FromStatus(err)
	if errors.Is(err, context.Canceled) { // by our caller, or by Close: nobody knows what the peer did
		err = fmt.Errorf("%w: %w", volume.ErrUnavailable, err)
	}
	return none, fmt.Errorf("agent %s: %w", addr, err)
}

// CreateReplica names a replica to make, and the pool that is to hold it.
type CreateReplica struct {
	Volume     volume.ID
	UID        volume.UID
	Pool       string
	SizeBytes  int64
	Guaranteed bool         // the pool must keep room for all of SizeBytes
	Epoch      volume.Epoch // the volume's; a lower one never opens the replica
}

// CreateReplica makes an empty replica; repeating it is harmless.
func (c *Clients) CreateReplica(ctx context.Context, addr string, o CreateReplica) error {
	_, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.CreateReplicaResponse, error) {
		return a.CreateReplica(ctx, &agentpb.CreateReplicaRequest{
			VolumeId: string(o.Volume), VolumeUid: string(o.UID), Pool: o.Pool, SizeBytes: o.SizeBytes, Guaranteed: o.Guaranteed,
			Epoch: uint64(o.Epoch),
		})
	})
	return err
}

// DeleteReplica removes a replica; nil when there is none.
func (c *Clients) DeleteReplica(ctx context.Context, addr string, id volume.ID, uid volume.UID) error {
	_, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.DeleteReplicaResponse, error) {
		return a.DeleteReplica(ctx, &agentpb.DeleteReplicaRequest{VolumeId: string(id), VolumeUid: string(uid)})
	})
	return err
}

// OpenReplica names a session to open on a remote replica.
type OpenReplica struct {
	Volume  volume.ID
	UID     volume.UID
	Epoch   volume.Epoch
	Session volume.Session
	Holder  volume.NodeID
	Nonce   string // of the holder's claim
	Direct  bool
}

// OpenReplica fences a replica and opens a session, for which an NBD connection
// may then ask.
func (c *Clients) OpenReplica(ctx context.Context, addr string, o OpenReplica) (Opened, error) {
	r, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.OpenReplicaResponse, error) {
		return a.OpenReplica(ctx, &agentpb.OpenReplicaRequest{
			VolumeId: string(o.Volume), VolumeUid: string(o.UID), Epoch: uint64(o.Epoch), Session: uint32(o.Session),
			Holder: string(o.Holder), Nonce: o.Nonce, Direct: o.Direct,
		})
	})
	return Opened{SizeBytes: r.GetSizeBytes(), Incarnation: volume.Incarnation(r.GetIncarnation())}, err
}

// Opened is what a replica says of itself when a session on it is opened.
type Opened struct {
	SizeBytes   int64
	Incarnation volume.Incarnation
}

// GrowReplica names a replica to grow, and the session that it is open as.
type GrowReplica struct {
	UID       volume.UID
	Epoch     volume.Epoch
	Session   volume.Session
	SizeBytes int64
}

// GrowReplica makes a replica at least that large, under its open session.
func (c *Clients) GrowReplica(ctx context.Context, addr string, o GrowReplica) error {
	_, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.GrowReplicaResponse, error) {
		return a.GrowReplica(ctx, &agentpb.GrowReplicaRequest{
			VolumeUid: string(o.UID), Epoch: uint64(o.Epoch), Session: uint32(o.Session), SizeBytes: o.SizeBytes,
		})
	})
	return err
}

// Replica is a replica that a node has.
type Replica struct {
	Volume         volume.ID // empty when its record can't be read
	UID            volume.UID
	Pool           string
	SizeBytes      int64
	AllocatedBytes int64
	Epoch          volume.Epoch
	Session        volume.Session
	// Failure says why it must not be trusted; empty when sound.
	Failure string
}

// ListReplicas tells what the node's pools hold.
func (c *Clients) ListReplicas(ctx context.Context, addr string) ([]Replica, error) {
	r, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.ListReplicasResponse, error) {
		return a.ListReplicas(ctx, &agentpb.ListReplicasRequest{})
	})
	var out []Replica
	for _, i := range r.GetReplicas() {
		out = append(out, Replica{
			Volume: volume.ID(i.VolumeId), UID: volume.UID(i.VolumeUid), Pool: i.Pool, SizeBytes: i.SizeBytes,
			AllocatedBytes: i.AllocatedBytes, Epoch: volume.Epoch(i.Epoch), Session: volume.Session(i.Session), Failure: i.Failure,
		})
	}
	return out, err
}
