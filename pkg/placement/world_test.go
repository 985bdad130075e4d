package placement

import (
	"fmt"

	"pgregory.net/rapid"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	gib  = int64(1) << 30
	zone = "topology.kubernetes.io/zone"
	rack = "example.com/rack"
)

// node makes a node with one pool "data" of 100 GiB, nothing reserved, promised
// twice.
func node(id string, labels ...string) volume.Node {
	n := volume.Node{ID: volume.NodeID(id), Topology: map[string]string{volume.TopologyHost: id}}
	for i := 0; i+1 < len(labels); i += 2 {
		n.Topology[labels[i]] = labels[i+1]
	}
	n.Pools = []volume.Pool{poolOf("data", 100*gib)}
	return n
}

func poolOf(name string, capacity int64) volume.Pool {
	return volume.Pool{Name: name, Capacity: capacity, Free: capacity, OverProvision: 2, Healthy: true}
}

func withPools(n volume.Node, pools ...volume.Pool) volume.Node {
	n.Pools = pools
	return n
}

func params(replicas int) volume.Params {
	return volume.Params{Replicas: replicas, Locality: volume.LocalityPreferred, CacheMode: volume.CacheWriteback}
}

func strict(replicas int) volume.Params {
	p := params(replicas)
	p.Locality = volume.LocalityStrict
	return p
}

// taken makes a volume that takes size bytes from each of the pools.
func taken(p volume.Params, size int64, places ...Placement) volume.Volume {
	v := volume.Volume{Spec: volume.Spec{SizeBytes: size, Params: p}, Status: volume.Status{SizeBytes: size, Phase: volume.PhaseReady}}
	for _, at := range places {
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{Node: at.Node, Pool: at.Pool, State: volume.InSync})
	}
	return v
}

func at(node string) Placement { return Placement{Node: volume.NodeID(node), Pool: "data"} }

// drawCluster makes a small cluster, full of corner cases.
func drawCluster(t *rapid.T) Cluster {
	var c Cluster
	sizes := rapid.Int64Range(0, 64).Draw
	for i := range rapid.IntRange(1, 7).Draw(t, "nodes") {
		n := volume.Node{ID: volume.NodeID(fmt.Sprintf("n%d", i)), Topology: map[string]string{}}
		n.Topology[volume.TopologyHost] = string(n.ID)
		if z := rapid.IntRange(0, 3).Draw(t, "zone"); z > 0 {
			n.Topology[zone] = fmt.Sprintf("z%d", z)
		}
		if k := rapid.IntRange(0, 2).Draw(t, "rack"); k > 0 {
			n.Topology[rack] = fmt.Sprintf("r%d", k)
		}
		for k := range rapid.IntRange(0, 2).Draw(t, "pools") {
			capacity := rapid.Int64Range(0, 64).Draw(t, "capacity") << 20
			n.Pools = append(n.Pools, volume.Pool{
				Name: fmt.Sprintf("p%d", k), Capacity: capacity, Free: min(capacity, sizes(t, "free")<<20), Reserve: sizes(t, "reserve") << 18,
				OverProvision: rapid.Float64Range(0, 3).Draw(t, "over"), Healthy: rapid.IntRange(0, 9).Draw(t, "healthy") > 0,
			})
		}
		if rapid.IntRange(0, 7).Draw(t, "away") == 0 {
			if c.Away == nil {
				c.Away = map[volume.NodeID]string{}
			}
			c.Away[n.ID] = "its lease is stale"
		}
		c.Nodes = append(c.Nodes, n)
	}
	for range rapid.IntRange(0, 6).Draw(t, "volumes") {
		n := rapid.SampledFrom(c.Nodes).Draw(t, "on")
		p := params(1)
		if rapid.Bool().Draw(t, "guaranteed") {
			p = strict(1)
		}
		pool := fmt.Sprintf("p%d", rapid.IntRange(0, 1).Draw(t, "pool"))
		c.Volumes = append(c.Volumes, taken(p, rapid.Int64Range(1, 24).Draw(t, "size")<<20, Placement{n.ID, pool}))
	}
	return c
}

func drawRequest(t *rapid.T) Request {
	r := Request{Cluster: drawCluster(t), SizeBytes: rapid.Int64Range(1, 48).Draw(t, "want") << 20}
	r.Params = params(rapid.IntRange(1, 5).Draw(t, "replicas"))
	if rapid.Bool().Draw(t, "strict") {
		r.Params.Locality = volume.LocalityStrict
	}
	r.Params.Spread = rapid.SampledFrom([]string{"", "", zone, rack, volume.TopologyHost}).Draw(t, "spread")
	r.Params.PoolSelector = rapid.SampledFrom([]string{"", "", "", "p1"}).Draw(t, "selector")
	r.Requisite, r.Preferred = drawTopologies(t, "requisite"), drawTopologies(t, "preferred")
	return r
}

func drawTopologies(t *rapid.T, label string) []map[string]string {
	var ts []map[string]string
	for range rapid.IntRange(0, 3).Draw(t, label) {
		if rapid.Bool().Draw(t, "by zone") {
			ts = append(ts, map[string]string{zone: fmt.Sprintf("z%d", rapid.IntRange(1, 3).Draw(t, "z"))})
		} else {
			ts = append(ts, map[string]string{volume.TopologyHost: fmt.Sprintf("n%d", rapid.IntRange(0, 6).Draw(t, "n"))})
		}
	}
	return ts
}
