package placement

import (
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// More returns places for up to n more replicas of a volume that keeps those on
// the nodes kept: on other nodes, in other domains of the spread key, none beyond
// its pool's limits. It returns fewer when there is no room for all, and for each
// other node why it was refused.
func More(r Request, kept []volume.NodeID, n int) ([]Placement, []Refusal) {
	w := wish{params: r.Params, size: r.SizeBytes}
	free, refused := r.Cluster.candidates(w, now)
	var chosen []candidate
	for i := range r.Cluster.Nodes {
		node := &r.Cluster.Nodes[i]
		if slices.Contains(kept, node.ID) {
			domain, _ := domainOf(node, domainKey(r.Params))
			chosen = append(chosen, candidate{node: node, domain: domain})
		}
	}
	// What can't be judged any more must not be doubled either.
	free = slices.DeleteFunc(free, func(c candidate) bool { return slices.Contains(kept, c.node.ID) })
	keys := softKeys(r.Cluster.Nodes, domainKey(r.Params))
	var places []Placement
	for len(places) < n {
		left := slices.ContainsFunc(free, func(c candidate) bool {
			return !slices.ContainsFunc(chosen, func(x candidate) bool { return x.domain == c.domain })
		})
		if !left {
			break
		}
		c := r.next(free, chosen, keys)
		chosen = append(chosen, c)
		places = append(places, Placement{Node: c.node.ID, Pool: c.pool})
	}
	return places, refused
}
