package storetest

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func testLifecycle(t *testing.T, s Subject) {
	ctx, nodes := soon(t), s.Store.Nodes()
	_, err := nodes.Get(ctx, "a")
	requireErr(t, err, volume.ErrNotFound)

	created := create(t, nodes, Node("a"))
	if created.Version <= 0 {
		t.Fatalf("created at version %d", created.Version)
	}
	_, err = nodes.Create(ctx, Node("a"))
	requireErr(t, err, volume.ErrExists)

	got, err := nodes.Get(ctx, "a")
	require(t, err)
	if !reflect.DeepEqual(got, created) {
		t.Fatalf("got %+v, created %+v", got, created)
	}

	got.Heartbeat = 7
	updated := update(t, nodes, got)
	if updated.Version <= created.Version || updated.Heartbeat != 7 {
		t.Fatalf("updated to %+v from version %d", updated, created.Version)
	}
	got, err = nodes.Get(ctx, "a")
	require(t, err)
	if !reflect.DeepEqual(got, updated) {
		t.Fatalf("got %+v, updated %+v", got, updated)
	}

	require(t, nodes.Delete(ctx, updated))
	_, err = nodes.Get(ctx, "a")
	requireErr(t, err, volume.ErrNotFound)
	requireErr(t, nodes.Delete(ctx, updated), volume.ErrNotFound)
	_, err = nodes.Update(ctx, updated)
	requireErr(t, err, volume.ErrNotFound)
}

func testEveryField(t *testing.T, s Subject) {
	since := time.Date(2026, 7, 1, 12, 30, 0, 123456789, time.UTC)
	v := volume.Volume{
		ID: volume.IDFor("ü"), UID: "0f0e0d0c-0b0a-4908-8706-050403020100",
		Spec: volume.Spec{
			Name: "ü", SizeBytes: 1 << 40, Block: true, FSType: "xfs",
			Params: volume.Params{
				Replicas: 3, Spread: "topology.kubernetes.io/zone", Locality: volume.LocalityStrict,
				MkfsOptions: "-m reflink=1", CacheMode: volume.CacheNone, PoolSelector: "fast",
			},
			Replicas: 2, Places: []volume.Place{{Node: "b", Pool: "fast", ID: "i", Made: true}},
		},
		Status: volume.Status{
			Phase: volume.PhaseReady, SizeBytes: 1 << 40, Epoch: 1<<63 + 1, Clean: true,
			Holder:     &volume.Holder{Node: "a", Nonce: "n", Since: since, Repair: true},
			Format:     volume.Format{State: volume.FormatDone, FSType: "xfs"},
			Replicas:   []volume.Replica{{Node: "a", Pool: "fast", ID: "j", State: volume.Outdated, Reason: "<&>\u2028", Since: since, Change: 7, Incarnation: "b/1:2"}},
			Retired:    []volume.Retired{{Node: "c", Pool: "slow", ID: "k", Epoch: 5}},
			Conditions: []volume.Condition{{Type: volume.ConditionDegraded, Status: true, Reason: "R", Message: "M", Since: since}},
		},
	}
	n := volume.Node{
		ID: "a.b-c", AgentAddr: "[::1]:1", ReplicaAddr: "h:2", Topology: map[string]string{volume.TopologyHost: "a.b-c"}, MaxVolumes: 128,
		Pools:     []volume.Pool{{Name: "fast", UID: "u", Capacity: 1 << 50, Free: 1, Reserve: 2, OverProvision: 1.5, Healthy: true, Message: "m"}},
		Heartbeat: 1<<64 - 1, Lease: 1500 * time.Millisecond, Leaving: true, Evicting: true,
	}
	requireNoZero(t, reflect.ValueOf(v), "Volume")
	requireNoZero(t, reflect.ValueOf(n), "Node")

	create(t, s.Store.Volumes(), v)
	gotV, err := s.Other.Volumes().Get(soon(t), v.ID)
	require(t, err)
	v.Version = gotV.Version
	if !reflect.DeepEqual(gotV, v) {
		t.Errorf("volume\n got %+v\nwant %+v", gotV, v)
	}
	create(t, s.Store.Nodes(), n)
	gotN, err := s.Other.Nodes().Get(soon(t), n.ID)
	require(t, err)
	n.Version = gotN.Version
	if !reflect.DeepEqual(gotN, n) {
		t.Errorf("node\n got %+v\nwant %+v", gotN, n)
	}
}

// requireNoZero makes sure that a field added later is part of the test above.
func requireNoZero(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch {
	case v.IsZero():
		if !strings.HasSuffix(path, ".Version") { // the store's own
			t.Errorf("%s is not set: this test must set every field", path)
		}
	case v.Kind() == reflect.Pointer:
		requireNoZero(t, v.Elem(), path)
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			requireNoZero(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for i := range v.NumField() {
			requireNoZero(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	}
}

func testStale(t *testing.T, s Subject) {
	ctx, nodes := soon(t), s.Store.Nodes()
	old := create(t, nodes, Node("a"))
	now := old
	now.Heartbeat = 1
	now = update(t, s.Other.Nodes(), now)

	stale := old
	stale.Heartbeat = 99
	_, err := nodes.Update(ctx, stale)
	requireErr(t, err, volume.ErrConflict)
	requireErr(t, nodes.Delete(ctx, stale), volume.ErrConflict)
	got, err := nodes.Get(ctx, "a")
	require(t, err)
	if !reflect.DeepEqual(got, now) {
		t.Fatalf("a refused update left %+v, want %+v", got, now)
	}
}

func testRecreated(t *testing.T, s Subject) {
	ctx, nodes := soon(t), s.Store.Nodes()
	old := create(t, nodes, Node("a"))
	require(t, nodes.Delete(ctx, old))
	again := create(t, nodes, Node("a"))
	if again.Version <= old.Version {
		t.Fatalf("version %d after %d", again.Version, old.Version)
	}
	_, err := nodes.Update(ctx, old)
	requireErr(t, err, volume.ErrConflict)
	requireErr(t, nodes.Delete(ctx, old), volume.ErrConflict)
}

func testOwnership(t *testing.T, s Subject) {
	vols := s.Store.Volumes()
	v := Volume("a")
	v.Status.Replicas = []volume.Replica{{Node: "n1"}}
	created := create(t, vols, v)
	v.Status.Replicas[0].Node = "changed by the caller"
	created.Status.Replicas[0].Node = "changed by the caller"
	got, err := vols.Get(soon(t), v.ID)
	require(t, err)
	if got.Status.Replicas[0].Node != "n1" {
		t.Fatalf("the store's object changed to %+v", got.Status.Replicas)
	}
}

func testBadKeys(t *testing.T, s Subject) {
	tests := map[string]volume.NodeID{
		"empty": "", "slash": "a/b", "leading slash": "/a", "NUL": "a\x00", "newline": "a\n", "blank": "a b",
		"not ASCII": "ä", "too long": volume.NodeID(strings.Repeat("a", 254)),
	}
	nodes := s.Store.Nodes()
	for name, key := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := nodes.Get(soon(t), key)
			requireErr(t, err, volume.ErrInvalid)
			_, err = nodes.Create(soon(t), Node(key))
			requireErr(t, err, volume.ErrInvalid)
			n := Node(key)
			n.Version = 1
			_, err = nodes.Update(soon(t), n)
			requireErr(t, err, volume.ErrInvalid)
			requireErr(t, nodes.Delete(soon(t), n), volume.ErrInvalid)
			if key != "" {
				_, err = nodes.Watch(t.Context(), key)
				requireErr(t, err, volume.ErrInvalid)
			}
		})
	}
	longest := volume.NodeID(strings.Repeat("a", 253))
	create(t, nodes, Node(longest))
}

func testNeverStored(t *testing.T, s Subject) {
	nodes := s.Store.Nodes()
	_, err := nodes.Update(soon(t), Node("a"))
	requireErr(t, err, volume.ErrInvalid)
	requireErr(t, nodes.Delete(soon(t), Node("a")), volume.ErrInvalid)
	_, err = nodes.Get(soon(t), "a")
	requireErr(t, err, volume.ErrNotFound)
}

func testTooLarge(t *testing.T, s Subject) {
	nodes := s.Store.Nodes()
	n := Node("a")
	n.Pools = []volume.Pool{{Message: strings.Repeat("x", 900<<10)}}
	n = create(t, nodes, n)
	got, err := s.Other.Nodes().Get(soon(t), "a")
	require(t, err)
	if !reflect.DeepEqual(got, n) {
		t.Fatal("a large object came back as another")
	}
	n.Pools[0].Message = strings.Repeat("x", 3<<20)
	_, err = nodes.Update(soon(t), n)
	requireErr(t, err, volume.ErrInvalid)
	n.Pools[0].OverProvision = math.Inf(1) // JSON has no infinity
	n.Pools[0].Message = ""
	_, err = nodes.Update(soon(t), n)
	requireErr(t, err, volume.ErrInvalid)
}

func testKinds(t *testing.T, s Subject) {
	v := Volume("a")
	create(t, s.Store.Volumes(), v)
	create(t, s.Store.Nodes(), Node(volume.NodeID(v.ID)))
	vols, err := s.Store.Volumes().List(soon(t))
	require(t, err)
	nodes, err := s.Store.Nodes().List(soon(t))
	require(t, err)
	if len(vols) != 1 || len(nodes) != 1 {
		t.Fatalf("%d volumes, %d nodes", len(vols), len(nodes))
	}
}

func testList(t *testing.T, s Subject) {
	nodes := s.Store.Nodes()
	empty, err := nodes.List(soon(t))
	require(t, err)
	if len(empty) != 0 {
		t.Fatalf("an empty store lists %v", empty)
	}
	const count = 1050 // more than fits in one page of any implementation
	var g errgroup.Group
	g.SetLimit(32)
	for i := range count {
		g.Go(func() error {
			_, err := s.Other.Nodes().Create(soon(t), Node(nodeName(i)))
			return err
		})
	}
	require(t, g.Wait())
	// Neighbours of the kind's range must not leak into it.
	s.PutRaw(t, "nodes-x/a", []byte("{}"))
	s.PutRaw(t, "nodes0", []byte("{}"))
	got, err := nodes.List(soon(t))
	require(t, err)
	if len(got) != count {
		t.Fatalf("%d objects, want %d", len(got), count)
	}
	for i, n := range got {
		if n.ID != nodeName(i) || n.Version <= 0 {
			t.Fatalf("object %d is %q at version %d", i, n.ID, n.Version)
		}
	}
}

func nodeName(i int) volume.NodeID { return volume.NodeID(fmt.Sprintf("n%05d", i)) }

// unreadable are stored bytes that are no node "x".
var unreadable = map[string]struct {
	data string
	want error
}{
	"empty":           {"", volume.ErrCorrupt},
	"garbage":         {"\x00\xff garbage", volume.ErrCorrupt},
	"cut short":       {`{"format":1,"kind":"nodes","object":{"id":"x"`, volume.ErrCorrupt},
	"trailing":        {`{"format":1,"kind":"nodes","object":{"id":"x"}} {}`, volume.ErrCorrupt},
	"not an object":   {`[1,2]`, volume.ErrCorrupt},
	"null object":     {`{"format":1,"kind":"nodes","object":null}`, volume.ErrCorrupt},
	"no object":       {`{"format":1,"kind":"nodes"}`, volume.ErrCorrupt},
	"no format":       {`{"kind":"nodes","object":{"id":"x"}}`, volume.ErrCorrupt},
	"negative format": {`{"format":-1,"kind":"nodes","object":{"id":"x"}}`, volume.ErrCorrupt},
	"other kind":      {`{"format":1,"kind":"volumes","object":{"id":"x"}}`, volume.ErrCorrupt},
	"other name":      {`{"format":1,"kind":"nodes","object":{"id":"y"}}`, volume.ErrCorrupt},
	"wrong type":      {`{"format":1,"kind":"nodes","object":{"id":"x","heartbeat":"1"}}`, volume.ErrCorrupt},
	"unknown field":   {`{"format":1,"kind":"nodes","object":{"id":"x","tomorrow":1}}`, volume.ErrCorrupt},
	"newer format":    {`{"format":3,"kind":"nodes","object":{"id":"x","tomorrow":1},"more":1}`, volume.ErrFormatVersion},
}

func testUnreadable(t *testing.T, s Subject) {
	nodes := s.Store.Nodes()
	create(t, nodes, Node("w"))
	create(t, nodes, Node("y"))
	for name, tt := range unreadable {
		t.Run(name, func(t *testing.T) {
			s.PutRaw(t, "nodes/x", []byte(tt.data))
			_, err := nodes.Get(soon(t), "x")
			requireErr(t, err, tt.want)
			if !strings.Contains(err.Error(), `nodes/"x"`) {
				t.Errorf("the error %q does not name the key", err)
			}
			others, err := nodes.List(soon(t))
			requireErr(t, err, tt.want)
			if !strings.Contains(err.Error(), `nodes/"x"`) {
				t.Errorf("the error %q does not name the key", err)
			}
			if len(others) != 2 || others[0].ID != "w" || others[1].ID != "y" {
				t.Errorf("the others are %v", others)
			}
		})
	}
	_, err := nodes.Create(soon(t), Node("x"))
	requireErr(t, err, volume.ErrExists) // never overwritten unseen
}
