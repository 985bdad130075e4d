package controller

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestCreate(t *testing.T) {
	w := newWorld(t, 4)
	c := w.fresh()
	v := mustCreate(t, c, request("v", 3))
	if v.ID != volume.IDFor("v") || v.UID.Validate() != nil || v.Status.Phase != volume.PhaseReady || v.Status.SizeBytes != gib ||
		!v.Status.Clean || v.Status.Epoch != 0 || v.CountState(volume.InSync) != 3 || v.Version == 0 {
		t.Errorf("%+v", v)
	}
	if again := mustCreate(t, w.fresh(), request("v", 3)); !reflect.DeepEqual(again, v) {
		t.Errorf("repeated: %+v, first: %+v", again, v)
	}
	got, err := c.Get(context.Background(), v.ID)
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("Get: %+v, %v", got, err)
	}
	all, err := c.List(context.Background())
	if err != nil || len(all) != 1 || !reflect.DeepEqual(all[0], v) {
		t.Errorf("List: %+v, %v", all, err)
	}
	w.checkSettled()
}

func TestGuaranteedIsPassedOn(t *testing.T) {
	w := newWorld(t, 1)
	req := request("v", 1)
	req.Spec.Params.Locality = volume.LocalityStrict
	v := mustCreate(t, w.fresh(), req)
	w.checkSettled() // compares what the node was told
	from, err := w.fresh().Topology(context.Background(), v)
	if want := []map[string]string{{volume.TopologyHost: "n0"}}; err != nil || !reflect.DeepEqual(from, want) {
		t.Errorf("accessible from %v, %v", from, err)
	}
}

func TestTopologyOfPreferredIsAnywhere(t *testing.T) {
	w := newWorld(t, 2)
	from, err := w.fresh().Topology(context.Background(), mustCreate(t, w.fresh(), request("v", 2)))
	if err != nil || from != nil {
		t.Errorf("%v, %v", from, err)
	}
}

func TestCreateOfAnExistingName(t *testing.T) {
	n0, n3 := map[string]string{volume.TopologyHost: "n0"}, map[string]string{volume.TopologyHost: "n3"}
	strictOn := func(at map[string]string) CreateRequest {
		r := request("strict", 1)
		r.Spec.Params.Locality = volume.LocalityStrict
		r.Requisite = []map[string]string{at}
		return r
	}
	w := newWorld(t, 4)
	mustCreate(t, w.fresh(), request("v", 2))
	mustCreate(t, w.fresh(), strictOn(n0))
	tests := []struct {
		name string
		req  CreateRequest
		with func(*CreateRequest)
		want error
	}{
		{"the same", request("v", 2), func(*CreateRequest) {}, nil},
		{"a range that it is in", request("v", 2), func(r *CreateRequest) { r.RequiredBytes, r.LimitBytes = gib/2, 2*gib }, nil},
		{"another size wished within the range", request("v", 2), func(r *CreateRequest) { r.Spec.SizeBytes, r.RequiredBytes = 2*gib, 0 }, nil},
		{"too small", request("v", 2), func(r *CreateRequest) { r.Spec.SizeBytes, r.RequiredBytes = 2*gib, 2*gib }, volume.ErrExists},
		{"too large", request("v", 2), func(r *CreateRequest) { r.Spec.SizeBytes, r.RequiredBytes, r.LimitBytes = gib/2, 0, gib/2 }, volume.ErrExists},
		{"other parameters", request("v", 2), func(r *CreateRequest) { r.Spec.Params.CacheMode = volume.CacheNone }, volume.ErrExists},
		{"raw block", request("v", 2), func(r *CreateRequest) { r.Spec.Block = true }, volume.ErrExists},
		{"another filesystem", request("v", 2), func(r *CreateRequest) { r.Spec.FSType = "ext4" }, volume.ErrExists},
		{"preferred is accessible from everywhere", request("v", 2), func(r *CreateRequest) { r.Requisite = []map[string]string{n3} }, nil},
		{"strict in the same place", strictOn(n0), func(*CreateRequest) {}, nil},
		{"strict in another place", strictOn(n3), func(*CreateRequest) {}, volume.ErrExists},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.with(&tt.req)
			_, err := w.fresh().Create(context.Background(), tt.req)
			wantErr(t, err, tt.want)
		})
	}
	w.checkSettled()
}

func TestCreateRefuses(t *testing.T) {
	tests := []struct {
		name string
		with func(*CreateRequest)
		want error
	}{
		{"no name", func(r *CreateRequest) { r.Spec.Name = "" }, volume.ErrInvalid},
		{"a name with a slash", func(r *CreateRequest) { r.Spec.Name = "deleted/x" }, volume.ErrInvalid},
		{"size zero", func(r *CreateRequest) { r.Spec.SizeBytes = 0 }, volume.ErrInvalid},
		{"negative size", func(r *CreateRequest) { r.Spec.SizeBytes = -gib }, volume.ErrInvalid},
		{"odd size", func(r *CreateRequest) { r.Spec.SizeBytes = gib + 1 }, volume.ErrInvalid},
		{"tiny size", func(r *CreateRequest) { r.Spec.SizeBytes, r.RequiredBytes = 4096, 0 }, volume.ErrOutOfRange},
		{"less than required", func(r *CreateRequest) { r.RequiredBytes = 2 * gib }, volume.ErrOutOfRange},
		{"more than the limit", func(r *CreateRequest) { r.LimitBytes = gib - 1 }, volume.ErrOutOfRange},
		{"no replica", func(r *CreateRequest) { r.Spec.Params.Replicas = 0 }, volume.ErrInvalid},
		{"six replicas", func(r *CreateRequest) { r.Spec.Params.Replicas = 6 }, volume.ErrInvalid},
		{"more replicas than nodes", func(r *CreateRequest) { r.Spec.Params.Replicas = 4 }, volume.ErrPrecondition},
		{"larger than any pool", func(r *CreateRequest) { r.Spec.SizeBytes = 300 * gib }, volume.ErrOutOfRange},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 3)
			req := request("v", 2)
			tt.with(&req)
			_, err := w.fresh().Create(context.Background(), req)
			wantErr(t, err, tt.want)
			w.checkSettled()
			if len(w.volumes()) != 0 {
				t.Error("something is left in the store")
			}
		})
	}
}

func TestCreateUntilFull(t *testing.T) {
	w := newWorld(t, 3)
	for _, name := range []string{"a", "b", "c"} {
		req := request(name, 2)
		req.Spec.SizeBytes = 100 * gib
		mustCreate(t, w.fresh(), req)
	}
	_, err := w.fresh().Create(context.Background(), request("d", 2))
	wantErr(t, err, volume.ErrNoSpace)
	var why *placement.Error
	if !errors.As(err, &why) || len(why.Refusals) != 3 {
		t.Errorf("%v doesn't say why of each node", err)
	}
	left, err := w.fresh().Capacity(context.Background(), CapacityRequest{Params: request("d", 1).Spec.Params})
	if err != nil || left != (Capacity{Minimum: volume.MinSizeBytes}) {
		t.Errorf("capacity %+v, %v", left, err)
	}
	wantErr(t, w.fresh().Delete(context.Background(), volume.IDFor("b")), nil)
	mustCreate(t, w.fresh(), request("d", 2))
	w.reconcile(w.fresh())
	w.checkSettled()
}

func TestCreateWhileNodesFail(t *testing.T) {
	hangs := func(n *fakeNode) { n.hangs = true }
	stale := func(n *fakeNode) { n.stale = true }
	refuses := func(err error) func(*fakeNode) { return func(n *fakeNode) { n.refuses = err } }
	tests := []struct {
		name   string
		nodes  map[string]func(*fakeNode)
		want   error
		onto   []volume.NodeID
		saying string
	}{
		{"one away", map[string]func(*fakeNode){"n0": stale}, nil, []volume.NodeID{"n1", "n2"}, ""},
		{"one hangs", map[string]func(*fakeNode){"n0": hangs}, nil, []volume.NodeID{"n1", "n2"}, ""},
		{"one is fuller than it said", map[string]func(*fakeNode){"n1": refuses(volume.ErrNoSpace)}, nil, []volume.NodeID{"n0", "n2"}, ""},
		{"one has lost its pool", map[string]func(*fakeNode){"n1": refuses(volume.ErrNotFound)}, nil, []volume.NodeID{"n0", "n2"}, ""},
		{"two away", map[string]func(*fakeNode){"n0": stale, "n1": stale}, volume.ErrUnavailable, nil, "node n0: is away: its lease is stale"},
		{"two hang", map[string]func(*fakeNode){"n0": hangs, "n1": hangs}, volume.ErrUnavailable, nil, "node n0: did not make a replica"},
		{"two are full", map[string]func(*fakeNode){"n0": refuses(volume.ErrNoSpace), "n1": refuses(volume.ErrNoSpace)}, volume.ErrNoSpace, nil, "node n1: pool \"data\": no space left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 3)
			for id, change := range tt.nodes {
				w.node(id, change)
			}
			v, err := w.fresh().Create(context.Background(), request("v", 2))
			wantErr(t, err, tt.want)
			if err == nil && !reflect.DeepEqual(nodesOf(&v), tt.onto) {
				t.Errorf("on %v, want %v", nodesOf(&v), tt.onto)
			}
			if err != nil && !strings.Contains(err.Error(), tt.saying) {
				t.Errorf("%q does not say %q", err, tt.saying)
			}
			w.returned()
			w.reconcile(w.fresh())
			w.checkSettled()
		})
	}
}

// TestAnAgentThatNeverAnswersCostsItsTimeoutOnly: the call has no deadline of
// its own, and one agent hangs until its context ends.
func TestAnAgentThatNeverAnswersCostsItsTimeoutOnly(t *testing.T) {
	w := newWorld(t, 3)
	c := w.controller(w.store.Connect(), agentsFunc{Agents: w, create: func(ctx context.Context, addr string, r NewReplica) error {
		if addr == "n0:1" {
			<-ctx.Done()
			return ctx.Err()
		}
		return w.CreateReplica(ctx, addr, r)
	}})
	c.opt.AgentTimeout = 50 * time.Millisecond
	if v := mustCreate(t, c, request("v", 2)); v.ReplicaOn("n0") >= 0 {
		t.Errorf("on %v", nodesOf(&v))
	}
	w.reconcile(w.fresh())
	w.checkSettled()
}

func TestCreateWithoutTimeLeavesTheVolumeForTheRepetition(t *testing.T) {
	w := newWorld(t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	c := w.controller(w.store.Connect(), agentsFunc{Agents: w, create: func(ctx context.Context, addr string, r NewReplica) error {
		if addr == "n1:1" {
			cancel() // the caller gives up while n1 works
			return ctx.Err()
		}
		return w.CreateReplica(ctx, addr, r)
	}})
	_, err := c.Create(ctx, request("v", 2))
	wantErr(t, err, context.Canceled)
	half := w.volumes()
	if len(half) != 1 || half[0].Status.Phase != volume.PhaseCreating {
		t.Fatalf("%+v", half)
	}
	if v := mustCreate(t, w.fresh(), request("v", 2)); v.UID != half[0].UID {
		t.Error("the repetition began anew")
	}
	w.checkSettled()
}

func TestHalfCreatedForAnotherTopologyIsPlacedAnew(t *testing.T) {
	w := newWorld(t, 3)
	w.leave(func(v *volume.Volume) {
		v.Spec = request("v", 1).Spec
		v.Status.Phase = volume.PhaseCreating
		v.Status.Replicas = []volume.Replica{{Node: "n0", Pool: "data", State: volume.InSync}}
	})
	req := request("v", 1)
	req.Requisite = []map[string]string{{volume.TopologyHost: "n2"}}
	if v := mustCreate(t, w.fresh(), req); v.Status.Replicas[0].Node != "n2" {
		t.Errorf("placed on %v", nodesOf(&v))
	}
	w.reconcile(w.fresh())
	w.checkSettled()
}

func TestStoreAwayIsUnavailable(t *testing.T) {
	w := newWorld(t, 3)
	conn := w.store.Connect()
	conn.SetFault(func(memory.Op) memory.Fault { return memory.Before })
	c := w.controller(conn, w)
	ctx := context.Background()
	_, create := c.Create(ctx, request("v", 1))
	_, get := c.Get(ctx, volume.IDFor("v"))
	_, list := c.List(ctx)
	_, expand := c.Expand(ctx, volume.IDFor("v"), gib)
	_, capacity := c.Capacity(ctx, CapacityRequest{})
	for name, err := range map[string]error{
		"create": create, "get": get, "list": list, "expand": expand, "capacity": capacity,
		"delete": c.Delete(ctx, volume.IDFor("v")), "ready": c.Ready(ctx),
	} {
		if !errors.Is(err, volume.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.fresh().Ready(ctx); err != nil {
		t.Errorf("ready: %v", err)
	}
}
