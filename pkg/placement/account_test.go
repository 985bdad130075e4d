package placement

import (
	"errors"
	"math"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestExample holds the example of docs/placement.md.
func TestExample(t *testing.T) {
	p := volume.Pool{Name: "data", Capacity: 102 * gib, Free: 70 * gib, Reserve: 2 * gib, OverProvision: 2, Healthy: true}
	here := Placement{"a", "data"}
	volumes := []volume.Volume{
		taken(params(3), 80*gib, here, at("b"), at("c")),
		taken(strict(1), 30*gib, here),
	}
	volumes[0].Status.SizeBytes = 50 * gib // not yet grown: the size wanted counts
	tombstone := taken(params(1), 10*gib, here)
	tombstone.Status.Phase = volume.PhaseDeleting
	u := Usages(append(volumes, tombstone))[here]
	if u.Promised != 120*gib || u.Guaranteed != 30*gib {
		t.Fatalf("usage %+v", u)
	}
	if p.Usable() != 100*gib || Limit(p) != 200*gib {
		t.Errorf("usable %d, limit %d", p.Usable(), Limit(p))
	}
	if room := RoomFor(p, u, params(3)); room != 80*gib {
		t.Errorf("thin room %d", room)
	}
	if room := RoomFor(p, u, strict(1)); room != 68*gib {
		t.Errorf("guaranteed room %d", room)
	}
}

func TestRoomForAtTheEdges(t *testing.T) {
	tests := []struct {
		name   string
		pool   volume.Pool
		used   Usage
		params volume.Params
		want   int64
	}{
		{"reserve larger than capacity", volume.Pool{Capacity: gib, Free: gib, Reserve: 2 * gib, OverProvision: 2}, Usage{}, params(1), 0},
		{"no over-provisioning given", volume.Pool{Capacity: gib, Free: gib}, Usage{}, params(1), gib},
		{"over-provisioning is no number", volume.Pool{Capacity: gib, Free: gib, OverProvision: math.NaN()}, Usage{}, params(1), gib},
		{"over-provisioning without end", volume.Pool{Capacity: gib, Free: gib, OverProvision: math.Inf(1)}, Usage{}, params(1), math.MaxInt64},
		{"beyond the limit already", volume.Pool{Capacity: gib, Free: gib, OverProvision: 1}, Usage{Promised: 3 * gib}, params(1), 0},
		{"promised without end", volume.Pool{Capacity: gib, Free: gib, OverProvision: 1}, Usage{Promised: math.MaxInt64}, params(1), 0},
		{"thin data is in a guaranteed volume's way", volume.Pool{Capacity: 10 * gib, Free: 3 * gib, Reserve: gib, OverProvision: 2}, Usage{Promised: 8 * gib}, strict(1), 2 * gib},
		{"three strict replicas are thin", volume.Pool{Capacity: 10 * gib, Free: 3 * gib, Reserve: gib, OverProvision: 2}, Usage{Promised: 8 * gib}, strict(3), 10 * gib},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := RoomFor(tt.pool, tt.used, tt.params); got != tt.want {
				t.Errorf("room %d, want %d", got, tt.want)
			}
		})
	}
}

func TestUsagesDoNotOverflow(t *testing.T) {
	v := taken(params(1), math.MaxInt64-1, at("a"))
	if u := Usages([]volume.Volume{v, v, v})[at("a")]; u.Promised != math.MaxInt64 {
		t.Errorf("%+v", u)
	}
}

func TestCapacity(t *testing.T) {
	three := []volume.Node{node("a"), node("b"), withPools(node("c"), poolOf("data", 10*gib))}
	host := func(n string) map[string]string { return map[string]string{volume.TopologyHost: n} }
	tests := []struct {
		name     string
		params   volume.Params
		topology map[string]string
		want     Capacity
	}{
		{"one replica anywhere", params(1), nil, Capacity{Available: 420 * gib, Maximum: 200 * gib}},
		{"two replicas", params(2), nil, Capacity{Available: 210 * gib, Maximum: 200 * gib}},
		{"three replicas are bound by the smallest", params(3), nil, Capacity{Available: 20 * gib, Maximum: 20 * gib}},
		{"more than there are nodes", params(4), nil, Capacity{}},
		{"strict on the small node", strict(2), host("c"), Capacity{Available: 20 * gib, Maximum: 20 * gib}},
		{"strict guaranteed on the small node", strict(1), host("c"), Capacity{Available: 10 * gib, Maximum: 10 * gib}},
		{"preferred is usable from a node without a pool", params(1), host("x"), Capacity{Available: 420 * gib, Maximum: 200 * gib}},
		{"strict is not", strict(1), host("x"), Capacity{}},
		{"a pool that nobody has", fromPool(params(1), "nvme"), nil, Capacity{}},
		{"no replicas", params(0), nil, Capacity{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := CapacityFor(CapacityRequest{Cluster: Cluster{Nodes: three}, Params: tt.params, Topology: tt.topology})
			if got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCheckGrow(t *testing.T) {
	nodes := []volume.Node{node("a"), withPools(node("b"), poolOf("data", 10*gib))}
	v := taken(params(2), 4*gib, at("a"), at("b"))
	tests := []struct {
		name    string
		cluster Cluster
		size    int64
		want    error
	}{
		{"fits", Cluster{Nodes: nodes}, 20 * gib, nil},
		{"larger than a pool", Cluster{Nodes: nodes}, 21 * gib, volume.ErrOutOfRange},
		{"others are in the way", Cluster{Nodes: nodes, Volumes: []volume.Volume{taken(params(1), 10*gib, at("b"))}}, 11 * gib, volume.ErrNoSpace},
		{"a node is away", Cluster{Nodes: nodes, Away: map[volume.NodeID]string{"b": "its lease is stale"}}, 5 * gib, nil},
		{"too large for a pool whose node is away", Cluster{Nodes: nodes, Away: map[volume.NodeID]string{"b": "its lease is stale"}}, 21 * gib, volume.ErrOutOfRange},
		{"all nodes are away", Cluster{Nodes: nodes, Away: map[volume.NodeID]string{"a": "its lease is stale", "b": "left"}}, 5 * gib, volume.ErrUnavailable},
		{"a node is gone", Cluster{Nodes: nodes[:1]}, 5 * gib, nil},
		{"all nodes are gone", Cluster{}, 5 * gib, volume.ErrUnavailable},
		{"a pool is gone", Cluster{Nodes: []volume.Node{nodes[0], withPools(node("b"))}}, 5 * gib, volume.ErrUnavailable},
		{"growing by nothing", Cluster{Nodes: nodes}, 4 * gib, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cluster.Volumes = append(tt.cluster.Volumes, v)
			err := CheckGrow(tt.cluster, v, tt.size)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
