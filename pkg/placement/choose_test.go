package placement

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func racks() []volume.Node {
	return []volume.Node{
		node("a1", zone, "a", rack, "1"), node("a2", zone, "a", rack, "2"),
		node("b1", zone, "b", rack, "3"), node("b2", zone, "b", rack, "4"),
	}
}

func spreadOver(p volume.Params, key string) volume.Params {
	p.Spread = key
	return p
}

func fromPool(p volume.Params, pool string) volume.Params {
	p.PoolSelector = pool
	return p
}

func TestChoose(t *testing.T) {
	onZone := func(z string) []map[string]string { return []map[string]string{{zone: z}} }
	full := func(name string) volume.Volume { return taken(params(1), 200*gib, at(name)) }
	tests := []struct {
		name string
		req  Request
		want []string // nodes, in order
		err  error
		says []string
	}{
		{name: "one replica goes to the first name when all are equal", req: Request{Params: params(1)}, want: []string{"a1"}},
		{name: "two replicas go to two zones unasked", req: Request{Params: params(2)}, want: []string{"a1", "b1"}},
		{name: "three replicas on two zones use three racks", req: Request{Params: params(3)}, want: []string{"a1", "b1", "a2"}},
		{name: "the emptiest pool is taken", req: Request{Params: params(1), Cluster: Cluster{Volumes: []volume.Volume{
			taken(params(3), 4*gib, at("a1"), at("a2"), at("b1"))}}}, want: []string{"b2"}},
		{name: "the first replica goes to the preferred node", req: Request{Params: params(2),
			Preferred: []map[string]string{{volume.TopologyHost: "b2"}, {volume.TopologyHost: "a2"}}}, want: []string{"b2", "a2"}},
		{name: "a preferred node without room is passed over", req: Request{Params: params(1), Cluster: Cluster{Volumes: []volume.Volume{full("b2")}},
			Preferred: []map[string]string{{volume.TopologyHost: "b2"}, {volume.TopologyHost: "a2"}}}, want: []string{"a2"}},
		{name: "spread by zone is a must", req: Request{Params: spreadOver(params(3), zone)}, err: volume.ErrPrecondition,
			says: []string{"3 replicas need 3 different values of \"topology.kubernetes.io/zone\", the cluster has 2"}},
		{name: "an unknown spread key is the caller's mistake", req: Request{Params: spreadOver(params(1), "example.com/room")}, err: volume.ErrInvalid,
			says: []string{"parameters.spread", "example.com/room"}},
		{name: "an unknown pool is the caller's mistake", req: Request{Params: fromPool(params(1), "nvme")}, err: volume.ErrInvalid, says: []string{"parameters.pool", "nvme"}},
		{name: "preferred locality needs one replica in the requisite zone", req: Request{Params: params(2), Requisite: onZone("b")}, want: []string{"b1", "a1"}},
		{name: "strict locality needs all of them there", req: Request{Params: strict(2), Requisite: onZone("b")}, want: []string{"b1", "b2"}},
		{name: "a requisite zone with too few nodes", req: Request{Params: strict(3), Requisite: onZone("b")}, err: volume.ErrNoSpace,
			says: []string{"node a1: is outside of the requisite topology"}},
		{name: "a requisite zone that nobody is in", req: Request{Params: params(1), Requisite: onZone("c")}, err: volume.ErrNoSpace},
		{name: "more replicas than nodes", req: Request{Params: params(5)}, err: volume.ErrPrecondition},
		{name: "larger than any pool", req: Request{Params: params(1), SizeBytes: 201 * gib}, err: volume.ErrOutOfRange,
			says: []string{"node b2: pool \"data\" has room for"}},
		{name: "a guaranteed volume may not be larger than a pool is", req: Request{Params: strict(1), SizeBytes: 101 * gib}, err: volume.ErrOutOfRange},
		{name: "a full cluster", req: Request{Params: params(1), SizeBytes: 2 * gib, Cluster: Cluster{Volumes: []volume.Volume{
			full("a1"), full("a2"), full("b1"), full("b2")}}}, err: volume.ErrNoSpace, says: []string{"has room for 0 bytes of 2147483648"}},
		{name: "room only on nodes that are away", req: Request{Params: params(4), Cluster: Cluster{Away: map[volume.NodeID]string{"b1": "its lease is stale"}}},
			err: volume.ErrUnavailable, says: []string{"node b1: its lease is stale"}},
		{name: "a pool that has just refused", req: Request{Params: params(1), Cluster: Cluster{Refused: map[Placement]string{at("a1"): "no space"}}}, want: []string{"a2"}},
		{name: "all pools have just refused", req: Request{Params: params(4), Cluster: Cluster{Refused: map[Placement]string{at("a1"): "it said so"}}},
			err: volume.ErrNoSpace, says: []string{"node a1: pool \"data\": it said so"}},
		{name: "an unhealthy pool", req: Request{Params: params(1), Cluster: Cluster{Nodes: []volume.Node{
			withPools(node("x"), volume.Pool{Name: "data", Capacity: gib * 100, Free: gib * 100, Message: "shut down"})}}},
			err: volume.ErrNoSpace, says: []string{"is not healthy: shut down"}},
		{name: "a pool down to its reserve", req: Request{Params: params(1), Cluster: Cluster{Nodes: []volume.Node{
			withPools(node("x"), volume.Pool{Name: "data", Capacity: gib * 100, Free: gib, Reserve: gib, OverProvision: 2, Healthy: true})}}}, err: volume.ErrNoSpace},
		{name: "no node at all", req: Request{Params: params(1), Cluster: Cluster{Nodes: []volume.Node{}}}, err: volume.ErrUnavailable},
		{name: "a node without pools", req: Request{Params: params(1), Cluster: Cluster{Nodes: []volume.Node{withPools(node("x"))}}}, err: volume.ErrPrecondition,
			says: []string{"node x: has no pool"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.req.Cluster.Nodes == nil {
				tt.req.Cluster.Nodes = racks()
			}
			if tt.req.SizeBytes == 0 {
				tt.req.SizeBytes = gib
			}
			places, err := Choose(tt.req)
			if !errors.Is(err, tt.err) || (tt.err == nil) != (err == nil) {
				t.Fatalf("err = %v, want %v", err, tt.err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			var nodes []string
			for _, p := range places {
				nodes = append(nodes, string(p.Node))
			}
			if !reflect.DeepEqual(nodes, tt.want) {
				t.Errorf("nodes %v, want %v", nodes, tt.want)
			}
		})
	}
}

func TestPoolOfANodeIsTheEmptiest(t *testing.T) {
	n := withPools(node("x"), poolOf("p0", 10*gib), poolOf("p1", 100*gib))
	places, err := Choose(Request{Params: params(1), SizeBytes: gib, Cluster: Cluster{Nodes: []volume.Node{n}}})
	if err != nil || places[0].Pool != "p1" {
		t.Fatalf("%v, %v", places, err)
	}
	places, err = Choose(Request{Params: fromPool(params(1), "p0"), SizeBytes: gib, Cluster: Cluster{Nodes: []volume.Node{n}}})
	if err != nil || places[0].Pool != "p0" {
		t.Fatalf("%v, %v", places, err)
	}
}

func TestErrorNamesABoundedNumberOfNodes(t *testing.T) {
	e := &Error{Err: volume.ErrNoSpace, Need: "much", Refusals: make([]Refusal, maxRefusals+3)}
	if s := e.Error(); !strings.HasSuffix(s, "and 3 nodes more") {
		t.Error(s)
	}
}
