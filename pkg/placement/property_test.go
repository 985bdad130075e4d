package placement

import (
	"errors"
	"math/bits"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestChooseIsSound: what Choose returns breaks no rule.
func TestChooseIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		places, err := Choose(r)
		if err != nil {
			return
		}
		if len(places) != r.Params.Replicas {
			t.Fatalf("%d places for %d replicas", len(places), r.Params.Replicas)
		}
		seen := map[string]bool{}
		for _, p := range places {
			n := findNode(t, r.Cluster, p.Node)
			domain, ok := domainOf(&n, domainKey(r.Params))
			if !ok || seen[domain] || seen["node "+string(n.ID)] {
				t.Fatalf("place %v is not apart from the others: %v", p, places)
			}
			seen[domain], seen["node "+string(n.ID)] = true, true
			if r.Cluster.Away[p.Node] != "" {
				t.Fatalf("%v is away", p)
			}
			if r.Params.PoolSelector != "" && p.Pool != r.Params.PoolSelector {
				t.Fatalf("%v is not in the pool asked for", p)
			}
		}
		if !Satisfies(r.Cluster.Nodes, places, r) {
			t.Fatalf("%v don't satisfy %v", places, r.Requisite)
		}
		checkLimits(t, r, places)
	})
}

// checkLimits adds the new volume and looks whether a pool is beyond a limit.
func checkLimits(t *rapid.T, r Request, places []Placement) {
	all := Usages(append(slices.Clone(r.Cluster.Volumes), taken(r.Params, r.SizeBytes, places...)))
	for _, p := range places {
		n := findNode(t, r.Cluster, p.Node)
		pool := n.Pools[slices.IndexFunc(n.Pools, func(x volume.Pool) bool { return x.Name == p.Pool })]
		over := max(1, pool.OverProvision)
		switch {
		case !pool.Healthy:
			t.Fatalf("%v is not healthy", p)
		case float64(all[p].Promised) > over*float64(pool.Usable()):
			t.Fatalf("%v promises %d of %g*%d", p, all[p].Promised, over, pool.Usable())
		case r.Params.LoopOnly() && all[p].Guaranteed > pool.Usable():
			t.Fatalf("%v guarantees %d of %d", p, all[p].Guaranteed, pool.Usable())
		case r.Params.LoopOnly() && r.SizeBytes > pool.Free-pool.Reserve:
			t.Fatalf("%v guarantees %d more of %d free", p, r.SizeBytes, pool.Free-pool.Reserve)
		}
	}
}

// TestChooseIsComplete: Choose fails only if no set of nodes would do, tried by
// brute force, and says why of every node.
func TestChooseIsComplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		_, err := Choose(r)
		if want := bruteForce(&r); want != (err == nil) {
			t.Fatalf("brute force finds a place: %v, Choose: %v", want, err)
		}
		if err == nil || errors.Is(err, volume.ErrInvalid) {
			return
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%v is no placement error", err)
		}
		free, _ := r.Cluster.candidates(wish{params: r.Params, size: r.SizeBytes, requisite: r.Requisite}, now)
		if len(e.Refusals)+len(free) != len(r.Cluster.Nodes) {
			t.Fatalf("%d refusals and %d candidates of %d nodes", len(e.Refusals), len(free), len(r.Cluster.Nodes))
		}
	})
}

// bruteForce tries every set of nodes.
func bruteForce(r *Request) bool {
	usage := Usages(r.Cluster.Volumes)
	fits := func(n *volume.Node) bool {
		return r.Cluster.Away[n.ID] == "" && slices.ContainsFunc(n.Pools, func(p volume.Pool) bool {
			return p.Healthy && (r.Params.PoolSelector == "" || r.Params.PoolSelector == p.Name) &&
				RoomFor(p, usage[Placement{n.ID, p.Name}], r.Params) >= r.SizeBytes
		})
	}
	nodes := r.Cluster.Nodes
	for set := 0; set < 1<<len(nodes); set++ {
		if bits.OnesCount(uint(set)) != r.Params.Replicas {
			continue
		}
		var places []Placement
		domains, ok := map[string]bool{}, true
		for i := range nodes {
			if set&(1<<i) == 0 {
				continue
			}
			d, has := domainOf(&nodes[i], domainKey(r.Params))
			ok = ok && has && !domains[d] && fits(&nodes[i])
			domains[d] = true
			places = append(places, Placement{Node: nodes[i].ID})
		}
		if ok && Satisfies(nodes, places, *r) {
			return true
		}
	}
	return false
}

// TestMoreRoomNeverHurts: with one more node, a larger pool, or a volume less,
// what succeeded before succeeds still.
func TestMoreRoomNeverHurts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		if _, err := Choose(r); err != nil {
			return
		}
		switch rapid.IntRange(0, 3).Draw(t, "more") {
		case 0:
			extra := node("extra", zone, "z9")
			r.Cluster.Nodes = append(r.Cluster.Nodes, extra)
		case 1:
			i := rapid.IntRange(0, len(r.Cluster.Nodes)-1).Draw(t, "node")
			for k := range r.Cluster.Nodes[i].Pools {
				r.Cluster.Nodes[i].Pools[k].Capacity += 10 << 20
				r.Cluster.Nodes[i].Pools[k].Free += 10 << 20
			}
		case 2:
			if len(r.Cluster.Volumes) > 0 {
				r.Cluster.Volumes = r.Cluster.Volumes[1:]
			}
		case 3:
			r.Cluster.Away = nil
		}
		if _, err := Choose(r); err != nil {
			t.Fatalf("failed with more room: %v", err)
		}
	})
}

// TestChooseIsDeterministic: neither chance nor the order of nodes and volumes
// plays a part, and the input is left alone.
func TestChooseIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		first, err1 := Choose(r)
		r.Cluster.Nodes = rapid.Permutation(r.Cluster.Nodes).Draw(t, "nodes again")
		r.Cluster.Volumes = rapid.Permutation(r.Cluster.Volumes).Draw(t, "volumes again")
		second, err2 := Choose(r)
		if !reflect.DeepEqual(first, second) || (err1 == nil) != (err2 == nil) || err1 != nil && err1.Error() != err2.Error() {
			t.Fatalf("%v, %v and then %v, %v", first, err1, second, err2)
		}
	})
}

// TestCapacityIsExact: Maximum can be created, one unit more can't, and what
// volumes of one size take together never exceeds Available.
func TestCapacityIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		r.Requisite, r.Preferred = nil, nil
		c := CapacityFor(CapacityRequest{Cluster: r.Cluster, Params: r.Params})
		if c.Maximum > c.Available || c.Maximum%volume.SizeUnit != 0 || c.Available%volume.SizeUnit != 0 {
			t.Fatalf("%+v", c)
		}
		if r.SizeBytes = c.Maximum; c.Maximum > 0 {
			if _, err := Choose(r); err != nil {
				t.Fatalf("maximum of %d: %v", c.Maximum, err)
			}
		}
		r.SizeBytes = max(c.Maximum+volume.SizeUnit, volume.MinSizeBytes)
		if places, err := Choose(r); err == nil {
			t.Fatalf("more than the maximum of %d fits: %v", c.Maximum, places)
		}
		r.SizeBytes = rapid.Int64Range(1, 16).Draw(t, "each") << 20
		var sum int64
		for {
			places, err := Choose(r)
			if err != nil {
				break
			}
			sum += r.SizeBytes
			r.Cluster.Volumes = append(r.Cluster.Volumes, taken(r.Params, r.SizeBytes, places...))
		}
		if sum > c.Available && !r.Params.LoopOnly() {
			t.Fatalf("%d bytes of volumes fit into %d available", sum, c.Available)
		}
	})
}

func findNode(t *rapid.T, c Cluster, id volume.NodeID) volume.Node {
	for _, n := range c.Nodes {
		if n.ID == id {
			return n
		}
	}
	t.Fatalf("no node %s", id)
	return volume.Node{}
}
