package placement

import (
	"cmp"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Request asks for the places of a new volume's replicas.
type Request struct {
	Cluster   Cluster
	Params    volume.Params
	SizeBytes int64
	// Requisite: at least one replica must be in one of these topologies; with
	// strict locality every replica. Empty means anywhere.
	Requisite []map[string]string
	// Preferred: the first replica goes to the first of these that has room;
	// the others rather into one of these than elsewhere.
	Preferred []map[string]string
}

// Choose returns one place per replica, all on different nodes and in different
// domains of the spread key, none beyond its pool's limits; the first is the
// most preferred. Otherwise it returns an *Error, which says for each node why
// it was refused and wraps
//
//   - ErrInvalid: a spread key or pool name that no node has;
//   - ErrPrecondition: the cluster has fewer domains than replicas are wanted;
//   - ErrOutOfRange: even empty pools are too small, on living nodes or not;
//   - ErrUnavailable: it would do if the nodes that are away were there;
//   - ErrNoSpace: the pools, or those in the requisite topology, are too full.
func Choose(r Request) ([]Placement, error) {
	w := wish{params: r.Params, size: r.SizeBytes, requisite: r.Requisite}
	free, refused := r.Cluster.candidates(w, now)
	if n, anchored := domains(free); n < r.Params.Replicas || !anchored {
		return nil, r.explain(w, refused)
	}
	// Each domain takes at most one replica and every candidate can take any of
	// them, so a greedy choice never runs into a dead end.
	keys := softKeys(r.Cluster.Nodes, domainKey(r.Params))
	chosen := []candidate{r.first(free)}
	for len(chosen) < r.Params.Replicas {
		chosen = append(chosen, r.next(free, chosen, keys))
	}
	places := make([]Placement, len(chosen))
	for i, c := range chosen {
		places[i] = Placement{Node: c.node.ID, Pool: c.pool}
	}
	return places, nil
}

// first is the most preferred candidate in the requisite topology.
func (r *Request) first(free []candidate) candidate {
	anchors := slices.DeleteFunc(slices.Clone(free), func(c candidate) bool { return !c.anchor })
	return slices.MinFunc(anchors, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(rank(a.node, r.Preferred), rank(b.node, r.Preferred)),
			cmp.Compare(a.fill, b.fill),
			cmp.Compare(a.node.ID, b.node.ID))
	})
}

// next is the candidate in a new domain that shares least with those chosen,
// looking at the widest kind of domain first; then one in a preferred topology;
// then the emptiest.
func (r *Request) next(free, chosen []candidate, keys []string) candidate {
	others := slices.DeleteFunc(slices.Clone(free), func(c candidate) bool {
		return slices.ContainsFunc(chosen, func(x candidate) bool { return x.domain == c.domain || x.node.ID == c.node.ID })
	})
	unlisted := func(c candidate) int {
		if rank(c.node, r.Preferred) < len(r.Preferred) {
			return 0
		}
		return 1
	}
	return slices.MinFunc(others, func(a, b candidate) int {
		for _, k := range keys {
			if d := cmp.Compare(sharing(a, chosen, k), sharing(b, chosen, k)); d != 0 {
				return d
			}
		}
		return cmp.Or(
			cmp.Compare(unlisted(a), unlisted(b)),
			cmp.Compare(a.fill, b.fill),
			cmp.Compare(a.node.ID, b.node.ID))
	})
}

// sharing counts the chosen ones with the same value of the key; nodes without
// a value share it with each other, for nothing says that they are apart.
func sharing(c candidate, chosen []candidate, key string) int {
	mine, _ := domainOf(c.node, key)
	n := 0
	for _, x := range chosen {
		if theirs, _ := domainOf(x.node, key); theirs == mine {
			n++
		}
	}
	return n
}

// softKeys are the topology keys that tell nodes apart, the widest (the one of
// the fewest values) first, without the one in which replicas must differ
// anyway: replicas are spread over these too as far as there is room.
func softKeys(nodes []volume.Node, hard string) []string {
	values := make(map[string]map[string]bool)
	for i := range nodes {
		for k, v := range nodes[i].Topology {
			if values[k] == nil {
				values[k] = make(map[string]bool)
			}
			values[k][v] = true
		}
	}
	var keys []string
	for k, vs := range values {
		if k != hard && k != volume.TopologyHost && len(vs) > 1 {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(values[a]), len(values[b])), cmp.Compare(a, b))
	})
	return keys
}

// Satisfies says whether replicas in these places fulfil the requisite
// topology, as Choose understands it.
func Satisfies(nodes []volume.Node, places []Placement, r Request) bool {
	if len(r.Requisite) == 0 {
		return true
	}
	inside := 0
	for _, p := range places {
		i := slices.IndexFunc(nodes, func(n volume.Node) bool { return n.ID == p.Node })
		if i >= 0 && rank(&nodes[i], r.Requisite) < len(r.Requisite) {
			inside++
		}
	}
	if r.Params.Locality == volume.LocalityStrict {
		return inside == len(places)
	}
	return inside > 0
}
