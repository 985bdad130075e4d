package placement

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// CapacityRequest asks how much more could be created.
type CapacityRequest struct {
	Cluster Cluster
	Params  volume.Params
	// Topology: with strict locality, one replica must be in it, so that the
	// volume can be used from there. With preferred locality a volume can be
	// used from every node, so it is not looked at. nil means anywhere.
	Topology map[string]string
}

// Capacity says how much more such volumes could take, in bytes of volume (not
// of replicas), rounded down to volume.SizeUnit.
type Capacity struct {
	Available int64 // the sum of many volumes
	Maximum   int64 // the largest single one
}

// CapacityFor answers a CapacityRequest. Invariant: Maximum <= Available, and a
// volume of Maximum bytes can be placed now, one of SizeUnit more can't.
func CapacityFor(r CapacityRequest) Capacity {
	w := wish{params: r.Params, size: volume.MinSizeBytes}
	free, _ := r.Cluster.candidates(w, now)
	for i := range free {
		free[i].anchor = r.Params.Locality != volume.LocalityStrict || Within(free[i].node, r.Topology)
	}
	if n, anchored := domains(free); r.Params.Replicas < 1 || n < r.Params.Replicas || !anchored {
		return Capacity{}
	}
	return Capacity{
		Available: down(total(free, r.Params.Replicas)),
		Maximum:   down(largest(free, r.Params.Replicas)),
	}
}

func down(size int64) int64 { return size - size%volume.SizeUnit }

// largest is the size of the largest volume that fits: one replica on an
// anchor, the others in the roomiest of the other domains.
func largest(free []candidate, replicas int) int64 {
	best := make(map[string]int64) // of any node of the domain
	for _, c := range free {
		best[c.domain] = max(best[c.domain], c.room)
	}
	var result int64
	for _, c := range free {
		if !c.anchor {
			continue
		}
		others := []int64{}
		for d, room := range best {
			if d != c.domain {
				others = append(others, room)
			}
		}
		slices.SortFunc(others, func(a, b int64) int { return cmp.Compare(b, a) })
		size := c.room
		if replicas > 1 {
			size = min(size, others[replicas-2])
		}
		result = max(result, size)
	}
	return result
}

// total is the most that volumes with that many replicas, each in domains of
// its own, could take together: the largest t for which the domains, none of
// them counted with more than t (no volume uses one twice), hold replicas times
// t. It can't exceed what the anchors have, for every volume needs one.
func total(free []candidate, replicas int) int64 {
	room := make(map[string]int64)
	var anchors, sum int64
	for _, c := range free {
		room[c.domain] = add(room[c.domain], c.total)
		sum = add(sum, c.total)
		if c.anchor {
			anchors = add(anchors, c.total)
		}
	}
	holds := func(t int64) bool {
		var have int64
		for _, r := range room {
			have = add(have, min(r, t))
		}
		return have/int64(replicas) >= t
	}
	// holds is true up to some t and false after it (the sum is concave in t).
	low, high := int64(0), sum/int64(replicas)
	for low < high {
		mid := low + (high-low+1)/2
		if holds(mid) {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return min(low, anchors)
}

// CheckGrow says whether all of v's replicas have room to grow to size bytes; one
// whose node is away by its pool's last report, for it grows when that returns.
// ErrUnavailable when the nodes of all are away, or a pool is not reported,
// ErrOutOfRange when a pool could never hold that, ErrNoSpace when it can't now.
func CheckGrow(c Cluster, v volume.Volume, size int64) error {
	usage := Usages(c.Volumes)
	more := size - max(v.Spec.SizeBytes, v.Status.SizeBytes)
	var refused []Refusal
	var sentinel error
	for _, r := range v.Status.Replicas {
		if c.gone(r.Node) && !c.allGone(v) {
			continue
		}
		why, err := c.checkGrowOne(r, growth{params: v.Spec.Params, size: size, more: more, used: usage[Placement{r.Node, r.Pool}], alone: c.allGone(v)})
		if err == nil {
			continue
		}
		refused = append(refused, Refusal{Node: r.Node, Reason: why})
		if sentinel == nil || errors.Is(err, volume.ErrOutOfRange) { // the one that waiting won't cure
			sentinel = err
		}
	}
	if sentinel == nil {
		return nil
	}
	return &Error{Err: sentinel, Need: fmt.Sprintf("growing to %d bytes", size), Refusals: refused}
}

// gone says whether a node is away and has left no report either.
func (c *Cluster) gone(id volume.NodeID) bool {
	return !slices.ContainsFunc(c.Nodes, func(n volume.Node) bool { return n.ID == id })
}

// allGone says whether none of the volume's replicas can be reached.
func (c *Cluster) allGone(v volume.Volume) bool {
	return !slices.ContainsFunc(v.Status.Replicas, func(r volume.Replica) bool {
		_, away := c.Away[r.Node]
		return !away && !c.gone(r.Node)
	})
}

type growth struct {
	params     volume.Params
	size, more int64
	used       Usage
	alone      bool // no replica can be reached
}

func (c *Cluster) checkGrowOne(r volume.Replica, g growth) (why string, sentinel error) {
	i := slices.IndexFunc(c.Nodes, func(n volume.Node) bool { return n.ID == r.Node })
	if i < 0 {
		return "is not known to the store", volume.ErrUnavailable
	}
	if why, away := c.Away[r.Node]; away && g.alone {
		return why, volume.ErrUnavailable
	}
	k := slices.IndexFunc(c.Nodes[i].Pools, func(p volume.Pool) bool { return p.Name == r.Pool })
	if k < 0 {
		return fmt.Sprintf("does not report pool %q now", r.Pool), volume.ErrUnavailable
	}
	p := c.Nodes[i].Pools[k]
	if limit := LimitFor(p, g.params); limit < g.size {
		return fmt.Sprintf("pool %q could hold at most %d bytes when empty", p.Name, limit), volume.ErrOutOfRange
	}
	if room := RoomFor(p, g.used, g.params); room < g.more {
		return fmt.Sprintf("pool %q has room for %d bytes more of %d", p.Name, room, g.more), volume.ErrNoSpace
	}
	return "", nil
}
