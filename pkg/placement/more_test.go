package placement

import (
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestMore(t *testing.T) {
	var nodes []volume.Node
	for i, zone := range []string{"z1", "z1", "z2", "z2", "z3"} {
		id := volume.NodeID(fmt.Sprintf("n%d", i+1))
		nodes = append(nodes, volume.Node{
			ID: id, Topology: map[string]string{"zone": zone, volume.TopologyHost: string(id)},
			Pools: []volume.Pool{{Name: "p", Capacity: 100 << 30, Free: 100 << 30, OverProvision: 1, Healthy: true}},
		})
	}
	for name, c := range map[string]struct {
		kept   []volume.NodeID
		away   []volume.NodeID
		spread string
		size   int64
		n      int
		want   []volume.NodeID
	}{
		"another zone first":            {kept: []volume.NodeID{"n1"}, n: 1, want: []volume.NodeID{"n3"}},
		"two more":                      {kept: []volume.NodeID{"n1"}, n: 2, want: []volume.NodeID{"n3", "n5"}},
		"as many as there is room for":  {kept: []volume.NodeID{"n1", "n2", "n3"}, n: 5, want: []volume.NodeID{"n5", "n4"}},
		"spread by zone is a must":      {kept: []volume.NodeID{"n1"}, spread: "zone", n: 5, want: []volume.NodeID{"n3", "n5"}},
		"not where a node is away":      {kept: []volume.NodeID{"n1"}, away: []volume.NodeID{"n3", "n5"}, n: 1, want: []volume.NodeID{"n4"}},
		"a kept node that is away":      {kept: []volume.NodeID{"n1", "n3"}, away: []volume.NodeID{"n3"}, n: 1, want: []volume.NodeID{"n5"}},
		"too large":                     {kept: []volume.NodeID{"n1"}, size: 1 << 40, n: 1},
		"none":                          {kept: []volume.NodeID{"n1"}, n: 0},
		"a kept node that nobody knows": {kept: []volume.NodeID{"n1", "gone"}, n: 1, want: []volume.NodeID{"n3"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Request{SizeBytes: max(c.size, 1<<30), Params: volume.Params{Replicas: 3, Spread: c.spread}}
			r.Cluster = Cluster{Nodes: nodes, Away: map[volume.NodeID]string{}}
			for _, a := range c.away {
				r.Cluster.Away[a] = "away"
			}
			places, _ := More(r, c.kept, c.n)
			var got []volume.NodeID
			for _, p := range places {
				got = append(got, p.Node)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
