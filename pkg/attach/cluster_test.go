package attach

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/agent/service"
	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	volumeSize = 32 << 20
	patience   = 60 * time.Second
)

// cluster is a few nodes in one process, over real pools, sockets and exports,
// and a store in memory.
type cluster struct {
	t     *testing.T
	store *memory.Store
	nodes map[volume.NodeID]*testNode
	alive sync.Mutex
	dead  map[volume.NodeID]bool // Guarded by alive.
	// choose is what probing found.
	choose func(volume.Params) export.Choice
	// repairDelay: by default nothing is repaired while nobody uses it.
	repairDelay time.Duration
}

type testNode struct {
	node    volume.Node
	replica *replica.Server
	manager *Manager
}

// Fresh implements Liveness.
func (c *cluster) Fresh(n volume.NodeID) bool {
	c.alive.Lock()
	defer c.alive.Unlock()
	return !c.dead[n]
}

func (c *cluster) kill(n volume.NodeID) {
	c.alive.Lock()
	defer c.alive.Unlock()
	c.dead[n] = true
}

func newCluster(t *testing.T, names ...volume.NodeID) *cluster {
	t.Helper()
	return newRepairing(t, 0, names...)
}

// newRepairing is a cluster that repairs what nobody uses, after a while.
func newRepairing(t *testing.T, delay time.Duration, names ...volume.NodeID) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: pools and exports are mounted")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	c := &cluster{t: t, store: memory.New(), nodes: map[volume.NodeID]*testNode{}, dead: map[volume.NodeID]bool{}, choose: export.Probe(t.Context()).For, repairDelay: delay}
	for _, n := range names {
		c.nodes[n] = c.start(n)
	}
	return c
}

// start makes a node with a pool of its own, its servers and its manager.
func (c *cluster) start(name volume.NodeID) *testNode {
	c.t.Helper()
	n := &testNode{}
	log := slog.New(slog.DiscardHandler)
	p := pooltest.New(c.t)
	var err error
	n.replica, err = replica.NewServer(replica.Options{Pools: replica.Pools(p), Logger: log, LoopAttached: func(path string) (bool, error) {
		_, ok, err := export.LoopAttached(path)
		return ok, err
	}})
	c.must(err)
	c.t.Cleanup(func() { c.must(n.replica.Close()) })
	n.node = volume.Node{ID: name, AgentAddr: c.serveAgent(n.replica, log), ReplicaAddr: c.serveNBD(n.replica, log), Lease: time.Minute}
	_, err = c.store.Nodes().Create(context.Background(), n.node)
	c.must(err)
	clients := agent.NewClients()
	c.t.Cleanup(func() { c.must(clients.Close()) })
	n.manager = c.manager(n, clients, c.t.TempDir())
	return n
}

// manager makes a node's manager, as each process of the node does.
func (c *cluster) manager(n *testNode, clients *agent.Clients, state string) *Manager {
	c.t.Helper()
	log := slog.New(slog.DiscardHandler)
	m := New(Options{
		Node: n.node.ID, StateDir: state, Store: c.store, Liveness: c, Logger: log, LegTimeout: 5 * time.Second, HolderPoll: 20 * time.Millisecond,
		Replicas: &Replicas{Node: n.node.ID, Local: n.replica, Agents: clients, Addresses: c.store.Nodes().Get},
		Local:    n.replica, Choose: c.choose, Self: func() volume.Node { return n.node }, Keep: n.replica.Keep,
		RepairDelay: cmp.Or(c.repairDelay, time.Hour), HolderGrace: 2 * c.repairDelay,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return m.Run(ctx) })
	c.t.Cleanup(func() {
		sctx, scancel := context.WithTimeout(context.Background(), patience)
		defer scancel()
		if err := m.Shutdown(sctx); err != nil {
			c.t.Error(err)
		}
		cancel()
		if err := g.Wait(); !errors.Is(err, context.Canceled) {
			c.t.Error(err)
		}
	})
	c.eventually("the manager has read the store", func() bool { return m.Ready(context.Background()) == nil })
	return m
}

func (c *cluster) serveAgent(r *replica.Server, log *slog.Logger) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	s := grpc.NewServer()
	agentpb.RegisterAgentServer(s, service.New(r, log))
	var g errgroup.Group
	g.Go(func() error { return s.Serve(l) })
	c.t.Cleanup(func() { s.Stop(); c.must(g.Wait()) })
	return l.Addr().String()
}

func (c *cluster) serveNBD(r *replica.Server, log *slog.Logger) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return nbd.NewServer(nbd.ServerOptions{Backend: r.NBD(), Logger: log}).Serve(ctx, l) })
	c.t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			c.t.Error(err)
		}
	})
	return l.Addr().String()
}

// create makes a ready volume with a replica on each named node.
func (c *cluster) create(locality volume.Locality, on ...volume.NodeID) volume.Volume {
	c.t.Helper()
	v := volume.Volume{ID: volume.IDFor(uuid.NewString()), UID: volume.UID(uuid.NewString())}
	v.Spec = volume.Spec{Name: "test", SizeBytes: volumeSize, Params: volume.Params{Replicas: len(on), Locality: locality, CacheMode: volume.CacheWriteback}}
	v.Status = volume.Status{Phase: volume.PhaseReady, SizeBytes: volumeSize, Clean: true}
	for _, n := range on {
		c.must(c.nodes[n].replica.Create(context.Background(), replica.CreateOptions{
			Volume: v.ID, UID: v.UID, Pool: "p", SizeBytes: volumeSize, Guaranteed: v.Spec.Params.LoopOnly(),
		}))
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{Node: n, Pool: "p", State: volume.InSync})
	}
	v, err := c.store.Volumes().Create(context.Background(), v)
	c.must(err)
	return v
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) get(id volume.ID) volume.Volume {
	c.t.Helper()
	v, err := c.store.Volumes().Get(context.Background(), id)
	c.must(err)
	return v
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}
