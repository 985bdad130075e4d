package placement

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// candidate is a node that may take one replica, with the pool for it.
type candidate struct {
	node   *volume.Node
	pool   string
	domain string // value of the spread key
	anchor bool   // in one of the requisite topologies
	room   int64  // of the pool
	total  int64  // of all the node's fitting pools
	fill   float64
}

// wish is what a candidate must fulfil.
type wish struct {
	params    volume.Params
	size      int64
	requisite []map[string]string
}

// level says which obstacles count: finding out what is in the way is asking
// again with some of them ignored.
type level int

const (
	now   level = iota // everything counts
	back               // as if every node were there
	empty              // as if, besides, every pool were empty and healthy
	shape              // as if, besides, every pool were large enough
)

// domainKey is the topology key in which replicas must differ.
func domainKey(p volume.Params) string {
	if p.Spread == "" {
		return volume.TopologyHost
	}
	return p.Spread
}

// domainOf is the node's value of a topology key. A node is its own host domain
// even when its labels don't say so.
func domainOf(n *volume.Node, key string) (string, bool) {
	if key == volume.TopologyHost {
		return string(n.ID), true
	}
	d, ok := n.Topology[key]
	return d, ok && d != ""
}

// candidates returns the nodes that could take a replica, in the order of their
// names, and for each other node why not.
func (c *Cluster) candidates(w wish, l level) ([]candidate, []Refusal) {
	var found []candidate
	var refused []Refusal
	usage := Usages(c.Volumes)
	nodes := slices.Clone(c.Nodes)
	slices.SortFunc(nodes, func(a, b volume.Node) int { return cmp.Compare(a.ID, b.ID) })
	for i := range nodes {
		n := &nodes[i]
		refuse := func(reason string) { refused = append(refused, Refusal{Node: n.ID, Reason: reason}) }
		domain, ok := domainOf(n, domainKey(w.params))
		if !ok {
			refuse(fmt.Sprintf("has no topology label %q", w.params.Spread))
			continue
		}
		anchor := len(w.requisite) == 0 || rank(n, w.requisite) < len(w.requisite)
		if !anchor && w.params.Locality == volume.LocalityStrict {
			refuse("is outside of the requisite topology")
			continue
		}
		if why, away := c.Away[n.ID]; away && l == now {
			refuse(why)
			continue
		}
		cand := candidate{node: n, domain: domain, anchor: anchor}
		if why := c.pickPool(&cand, w, poolView{level: l, usage: usage}); why != "" {
			refuse(why)
			continue
		}
		found = append(found, cand)
	}
	return found, refused
}

type poolView struct {
	level level
	usage map[Placement]Usage
}

// pickPool chooses the node's pool that stays emptiest, by name among equals,
// or tells why none of them fits.
func (c *Cluster) pickPool(cand *candidate, w wish, view poolView) (why string) {
	reasons := ""
	note := func(format string, args ...any) {
		if reasons != "" {
			reasons += ", "
		}
		reasons += fmt.Sprintf(format, args...)
	}
	pools := slices.Clone(cand.node.Pools)
	slices.SortFunc(pools, func(a, b volume.Pool) int { return cmp.Compare(a.Name, b.Name) })
	for _, p := range pools {
		if w.params.PoolSelector != "" && p.Name != w.params.PoolSelector {
			continue
		}
		at := Placement{Node: cand.node.ID, Pool: p.Name}
		used := view.usage[at]
		room := RoomFor(p, used, w.params)
		if view.level >= empty {
			room = LimitFor(p, w.params)
		}
		refusal, refused := c.Refused[at]
		switch {
		case view.level < empty && refused:
			note("pool %q: %s", p.Name, refusal)
			continue
		case view.level < empty && !p.Healthy:
			note("pool %q is not healthy: %s", p.Name, cmp.Or(p.Message, "no reason given"))
			continue
		case view.level < shape && room < w.size:
			note("pool %q has room for %d bytes of %d", p.Name, room, w.size)
			continue
		}
		cand.total = add(cand.total, room)
		if f := fill(p, used, w.size); cand.pool == "" || f < cand.fill {
			cand.pool, cand.fill = p.Name, f
		}
		cand.room = max(cand.room, room)
	}
	switch {
	case cand.pool != "":
		return ""
	case reasons != "":
		return reasons
	case w.params.PoolSelector != "":
		return fmt.Sprintf("has no pool named %q", w.params.PoolSelector)
	}
	return "has no pool"
}

// domains counts the different domains among the candidates, and tells whether
// one of them is in the requisite topology.
func domains(cs []candidate) (count int, anchored bool) {
	seen := make(map[string]bool)
	for _, c := range cs {
		seen[c.domain] = true
		anchored = anchored || c.anchor
	}
	return len(seen), anchored
}

// rank is the index of the first of the topologies that the node is in, or
// their number.
func rank(n *volume.Node, topologies []map[string]string) int {
	for i, t := range topologies {
		if Within(n, t) {
			return i
		}
	}
	return len(topologies)
}

// Within says whether the node is in the topology: has each of its labels with
// the same value. Every node is in an empty topology.
func Within(n *volume.Node, topology map[string]string) bool {
	for k, want := range topology {
		if have, ok := domainOf(n, k); !ok || have != want {
			return false
		}
	}
	return true
}
