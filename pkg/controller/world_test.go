package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const gib = int64(1) << 30

// world is a cluster of fake nodes over an in-memory store. Its clock stands
// still unless it is advanced.
type world struct {
	t     testing.TB
	store *memory.Store
	now   *clock

	mu    sync.Mutex
	nodes map[string]*fakeNode // guarded by mu; by address
}

// fakeNode keeps replicas by UID, as the agent of a node does.
type fakeNode struct {
	id       volume.NodeID
	replicas map[volume.UID]NewReplica
	epochs   map[volume.UID]volume.Epoch // that replicas have seen, if set
	takenOff map[volume.UID]volume.Epoch // in which a replica was
	trash    []volume.UID
	stale    bool  // its lease is
	hangs    bool  // its agent answers nothing
	refuses  error // what it answers to CreateReplica
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newWorld(t testing.TB, nodes int) *world {
	w := &world{t: t, store: memory.New(), now: &clock{now: time.Unix(1e9, 0)}, nodes: map[string]*fakeNode{}}
	for i := range nodes {
		id := volume.NodeID(fmt.Sprintf("n%d", i))
		addr := string(id) + ":1"
		w.nodes[addr] = &fakeNode{id: id, replicas: map[volume.UID]NewReplica{}, takenOff: map[volume.UID]volume.Epoch{}}
		_, err := w.store.Nodes().Create(context.Background(), volume.Node{
			ID: id, AgentAddr: addr, Topology: map[string]string{volume.TopologyHost: string(id)}, Lease: time.Second,
			Pools: []volume.Pool{{Name: "data", Capacity: 100 * gib, Free: 100 * gib, OverProvision: 2, Healthy: true}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// node changes a fake node.
func (w *world) node(id string, change func(*fakeNode)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.nodes[id+":1"])
}

// Fresh implements Liveness.
func (w *world) Fresh(id volume.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[string(id)+":1"]
	return n != nil && !n.stale
}

// peer returns the node behind an address, if it answers.
func (w *world) peerLocked(addr string) (*fakeNode, error) {
	n := w.nodes[addr]
	if n == nil || n.stale || n.hangs {
		return nil, fmt.Errorf("dial %s: %w", addr, volume.ErrUnavailable)
	}
	return n, nil
}

// CreateReplica implements Agents, and checks what it is asked.
func (w *world) CreateReplica(_ context.Context, addr string, r NewReplica) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.peerLocked(addr)
	switch {
	case err != nil:
		return err
	case n.refuses != nil:
		return n.refuses
	case r.Pool != "data" || r.SizeBytes <= 0 || r.Volume.Validate() != nil || r.UID.Validate() != nil:
		return volume.Invalid("replica", fmt.Sprintf("%+v", r), "sound")
	}
	if has, ok := n.replicas[r.UID]; ok && has != r {
		return fmt.Errorf("replica %s: %w", r.UID, volume.ErrExists)
	}
	if least := n.takenOff[r.UID]; r.Epoch < least { // whoever was overtaken before would find it open
		w.t.Errorf("node %s: a replica of volume %s is made in epoch %d, the one before was taken off in %d", n.id, r.Volume, r.Epoch, least)
	}
	n.replicas[r.UID] = r
	return nil
}

// DeleteReplica implements Agents.
func (w *world) DeleteReplica(_ context.Context, addr string, id volume.ID, uid volume.UID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.peerLocked(addr)
	if err != nil {
		return err
	}
	if has, ok := n.replicas[uid]; ok && has.Volume != id {
		return volume.Invalid("volume", string(id), string(has.Volume))
	}
	delete(n.replicas, uid)
	return nil
}

// RetireReplica implements Agents.
func (w *world) RetireReplica(_ context.Context, addr string, o RetireReplica) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.peerLocked(addr)
	if err != nil {
		return err
	}
	if n.epochs[o.UID] > o.Epoch {
		return fmt.Errorf("replica %s: %w", o.UID, volume.ErrFenced)
	}
	if _, ok := n.replicas[o.UID]; ok && o.Keep {
		n.trash = append(n.trash, o.UID)
	}
	delete(n.replicas, o.UID)
	n.takenOff[o.UID] = o.Epoch
	return nil
}

// ListReplicas implements Agents.
func (w *world) ListReplicas(_ context.Context, addr string) ([]HeldReplica, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.peerLocked(addr)
	if err != nil {
		return nil, err
	}
	var held []HeldReplica
	for uid, r := range n.replicas {
		held = append(held, HeldReplica{Volume: r.Volume, UID: uid, Pool: r.Pool})
	}
	return held, nil
}

// controller makes one over the given connection and agents.
func (w *world) controller(conn *memory.Store, agents Agents) *Controller {
	return New(Options{Store: conn, Agents: agents, Liveness: w, Now: w.now.Now})
}

// fresh makes a controller with nothing wrong with it.
func (w *world) fresh() *Controller { return w.controller(w.store.Connect(), w) }

func (w *world) volumes() []volume.Volume {
	w.t.Helper()
	all, err := w.store.Volumes().List(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// edit changes a volume in the store, as its mirror would.
func (w *world) edit(id volume.ID, change func(*volume.Volume)) {
	w.t.Helper()
	for {
		v, err := w.store.Volumes().Get(context.Background(), id)
		if err != nil {
			w.t.Fatal(err)
		}
		change(&v)
		if _, err = w.store.Volumes().Update(context.Background(), v); err == nil {
			return
		} else if !errors.Is(err, volume.ErrConflict) {
			w.t.Fatal(err)
		}
	}
}

// reconcile runs passes until all deadlines have passed.
func (w *world) reconcile(c *Controller) {
	w.t.Helper()
	r := newReconciler(c)
	for range 4 {
		if err := r.pass(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		w.now.Advance(c.opt.CreateDeadline + c.opt.TombstoneGrace)
	}
}

// checkSettled holds that nothing is half-done: every volume is ready with all
// its replicas, and no node has a replica that isn't listed.
func (w *world) checkSettled() {
	w.t.Helper()
	type place struct {
		node volume.NodeID
		uid  volume.UID
	}
	listed := map[place]bool{}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.volumes() {
		if v.Status.Phase != volume.PhaseReady || v.ID != volume.IDFor(v.Spec.Name) {
			w.t.Errorf("volume %s (%s) is left %s with replicas %v", v.ID, v.UID, v.Status.Phase, nodesOf(&v))
			continue
		}
		if len(v.Status.Replicas) != v.Spec.Params.Replicas || !v.Status.Clean && v.Status.Holder == nil || v.Status.SizeBytes == 0 {
			w.t.Errorf("volume %s: %+v", v.ID, v.Status)
		}
		for _, r := range v.Status.Replicas {
			has, ok := w.nodes[string(r.Node)+":1"].replicas[v.UID]
			if !ok || has.SizeBytes > v.Spec.SizeBytes || has.Guaranteed != v.LoopOnly() {
				w.t.Errorf("volume %s: the replica on %s is %+v", v.ID, r.Node, has)
			}
			listed[place{r.Node, v.UID}] = true
		}
	}
	for _, n := range w.nodes {
		for uid := range n.replicas {
			if !listed[place{n.id, uid}] {
				w.t.Errorf("node %s is left with a replica of %s", n.id, uid)
			}
		}
	}
}

func request(name string, replicas int) CreateRequest {
	return CreateRequest{
		Spec: volume.Spec{Name: name, SizeBytes: gib, FSType: "xfs", Params: volume.Params{
			Replicas: replicas, Locality: volume.LocalityPreferred, CacheMode: volume.CacheWriteback}},
		RequiredBytes: gib,
	}
}

func heldBy(node volume.NodeID) func(*volume.Volume) {
	return func(v *volume.Volume) {
		v.Status.Epoch++
		v.Status.Holder = &volume.Holder{Node: node, Nonce: uuid.NewString()}
		v.Status.Clean = false
	}
}

func mustCreate(t testing.TB, c *Controller, req CreateRequest) volume.Volume {
	t.Helper()
	v, err := c.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		t.Fatalf("err = %v, want %v", err, want)
	}
}

func holds(n *fakeNode) []volume.UID {
	var uids []volume.UID
	for uid := range n.replicas {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids
}

// leave stores a new object for "v", as a controller that then died.
func (w *world) leave(fill func(*volume.Volume)) volume.Volume {
	w.t.Helper()
	v := volume.Volume{ID: volume.IDFor("v"), UID: volume.UID(uuid.NewString())}
	fill(&v)
	v, err := w.store.Volumes().Create(context.Background(), v)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// agentsFunc replaces single calls of Agents.
type agentsFunc struct {
	Agents
	create func(context.Context, string, NewReplica) error
}

func (a agentsFunc) CreateReplica(ctx context.Context, addr string, r NewReplica) error {
	return a.create(ctx, addr, r)
}
