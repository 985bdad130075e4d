package placement

import (
	"math"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Placement is the place of one replica.
type Placement struct {
	Node volume.NodeID
	Pool string
}

// Cluster is what is known when a decision is made.
type Cluster struct {
	// Volumes are all objects of the store, those being created and the
	// tombstones too: their replicas still take room.
	Volumes []volume.Volume
	// Nodes are all nodes of the store, living or not.
	Nodes []volume.Node
	// Away has the nodes that can't be used now, and why: "its lease is stale".
	Away map[volume.NodeID]string
	// Refused has the pools that just refused a replica, and why.
	Refused map[Placement]string
}

// Usage is what the volumes of the store take from one pool, in bytes.
type Usage struct {
	// Promised is the sum of the sizes of all replicas in the pool.
	Promised int64
	// Guaranteed is the part of it whose whole size the pool must keep room for.
	// Invariant: Guaranteed <= Promised.
	Guaranteed int64
}

// Usages adds up what every pool has promised. A replica counts with the larger
// of the size wanted and the size served, whatever its state and its volume's
// phase: as long as it is listed its file may exist. So do places that have no
// replica yet, and replicas that are retired and not yet removed.
func Usages(volumes []volume.Volume) map[Placement]Usage {
	all := make(map[Placement]Usage)
	for i := range volumes {
		v := &volumes[i]
		size := max(v.Spec.SizeBytes, v.Status.SizeBytes, 0)
		for at := range footprint(v) {
			u := all[at]
			u.Promised = add(u.Promised, size)
			if v.LoopOnly() {
				u.Guaranteed = add(u.Guaranteed, size)
			}
			all[at] = u
		}
	}
	return all
}

// footprint is where the volume has files, or will have.
func footprint(v *volume.Volume) map[Placement]bool {
	at := make(map[Placement]bool, len(v.Status.Replicas))
	for _, r := range v.Status.Replicas {
		at[Placement{Node: r.Node, Pool: r.Pool}] = true
	}
	for _, p := range v.Spec.Places {
		at[Placement{Node: p.Node, Pool: p.Pool}] = true
	}
	for _, r := range v.Status.Retired {
		at[Placement{Node: r.Node, Pool: r.Pool}] = true
	}
	return at
}

// Limit is how much a pool may promise in all, and LimitFor how large one
// replica could ever be in it, were it empty.
func Limit(p volume.Pool) int64 {
	over := p.OverProvision
	if !(over > 1) { // also NaN
		over = 1
	}
	limit := float64(p.Usable()) * over
	if limit >= math.MaxInt64 {
		return math.MaxInt64
	}
	return max(int64(limit), p.Usable())
}

// LimitFor is the size in bytes of the largest replica that the pool could hold
// were it empty: what it may promise, but for a volume whose size is guaranteed
// only what it has.
func LimitFor(p volume.Pool, params volume.Params) int64 {
	if params.LoopOnly() {
		return p.Usable()
	}
	return Limit(p)
}

// RoomFor is the size in bytes of the largest replica that such a volume could
// have in the pool now. A pool whose free space has sunk to its reserve takes
// nothing more, whatever it has promised.
func RoomFor(p volume.Pool, u Usage, params volume.Params) int64 {
	free := p.Free - p.Reserve
	if free <= 0 {
		return 0
	}
	room := Limit(p) - u.Promised
	if params.LoopOnly() {
		room = min(room, p.Usable()-u.Guaranteed, free)
	}
	return max(0, room)
}

// fill is the part of its limit that the pool would have promised with one more
// replica of that size: the measure by which pools are kept evenly full.
func fill(p volume.Pool, u Usage, size int64) float64 {
	limit := Limit(p)
	if limit == 0 {
		return 1
	}
	return float64(add(u.Promised, size)) / float64(limit)
}

// add is a+b for sums of sizes, held at the largest number.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
