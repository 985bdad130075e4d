package volume

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// MaxReplicas is how many replicas a volume may have, those included that are to
// be removed once others are in sync.
const MaxReplicas = 5

// Place is where a replica is wanted. The controller decides on places and makes
// the replicas; who holds the volume's epoch makes Status.Replicas follow
// (Volume.FollowPlaces). So each of the two has its own part of the object.
type Place struct {
	Node NodeID `json:"node"`
	Pool string `json:"pool"`
	// ID is the identity of this membership, drawn anew whenever a replica is added:
	// a replica that is removed and added again must not be taken for the one from
	// before, whose missed regions were tracked until it was removed.
	ID string `json:"id,omitempty"`
	// Made: the node has confirmed that the (empty) replica exists. One that
	// vanishes afterwards is never made again under the same ID.
	Made bool `json:"made,omitempty"`
}

// Retired is a replica that was taken off a volume which lives on: the leave to
// remove its files, and the only one. The node must not get another replica of
// the volume before.
type Retired struct {
	Node NodeID `json:"node"`
	Pool string `json:"pool"`
	ID   string `json:"id,omitempty"`
	// Epoch is the volume's when the replica was taken off. A replica that has seen
	// a higher one is another.
	Epoch Epoch `json:"epoch"`
}

// Replicas wanted now; the volume's parameters say how many it was created with.
func (s *Spec) WantedReplicas() int { return cmp.Or(s.Replicas, s.Params.Replicas) }

// PlaceOn returns the index of node's place in Spec.Places, or -1.
func (v *Volume) PlaceOn(node NodeID) int {
	return slices.IndexFunc(v.Spec.Places, func(p Place) bool { return p.Node == node })
}

// RetiredOn says whether node still has a replica that was taken off the volume.
func (v *Volume) RetiredOn(node NodeID) bool {
	return slices.ContainsFunc(v.Status.Retired, func(r Retired) bool { return r.Node == node })
}

// FollowPlaces changes Status.Replicas towards Spec.Places as far as is safe
// now, and says whether it changed anything. Only who holds the volume's epoch,
// with no mirror open, may store the result.
//
// What is added begins as Outdated, with everything to be copied. What is no
// longer wanted goes last: when every wanted replica is in sync. Two kinds go
// before, if they are not in sync and another one is: one that is to be made anew
// on its own node, and one whose slot is needed. An in-sync one never goes while
// one of the wanted is missing, so neither does the last copy.
func (v *Volume) FollowPlaces(now time.Time) bool {
	if len(v.Spec.Places) == 0 {
		return false
	}
	changed := false
	for i := 0; i < len(v.Status.Replicas); {
		r := v.Status.Replicas[i]
		if v.wanted(r) || !v.mayGo(r) {
			i++
			continue
		}
		v.Status.Retired = append(v.Status.Retired, Retired{Node: r.Node, Pool: r.Pool, ID: r.ID, Epoch: v.Status.Epoch})
		v.Status.Replicas = slices.Delete(v.Status.Replicas, i, i+1)
		changed = true
	}
	for _, p := range v.Spec.Places {
		if !p.Made || v.ReplicaOn(p.Node) >= 0 || v.RetiredOn(p.Node) || len(v.Status.Replicas) >= MaxReplicas {
			continue
		}
		v.Status.Replicas = append(v.Status.Replicas, Replica{
			Node: p.Node, Pool: p.Pool, ID: p.ID, State: Outdated, Reason: "it is new", Since: now,
		})
		changed = true
	}
	return changed
}

// wanted says whether there is a place for just this replica.
func (v *Volume) wanted(r Replica) bool {
	i := v.PlaceOn(r.Node)
	return i >= 0 && v.Spec.Places[i].ID == r.ID
}

// mayGo says whether a replica that is not wanted may be taken off now.
func (v *Volume) mayGo(r Replica) bool {
	if v.allPlacesInSync() {
		return true
	}
	if r.State == InSync || v.CountState(InSync) == 0 {
		return false
	}
	missing := 0
	for _, p := range v.Spec.Places {
		if v.ReplicaOn(p.Node) < 0 {
			missing++
		}
	}
	return v.PlaceOn(r.Node) >= 0 || len(v.Status.Replicas)+missing > MaxReplicas
}

// allPlacesInSync says whether every wanted replica is in sync, and there is one.
func (v *Volume) allPlacesInSync() bool {
	for _, p := range v.Spec.Places {
		i := v.ReplicaOn(p.Node)
		if i < 0 || v.Status.Replicas[i].State != InSync || v.Status.Replicas[i].ID != p.ID {
			return false
		}
	}
	return len(v.Spec.Places) > 0
}

// Settled says whether nothing is left to repair: every replica is in sync, each
// is where it is wanted, and a volume that nobody holds was closed cleanly.
func (v *Volume) Settled() bool {
	c := v.Clone()
	return v.CountState(InSync) == len(v.Status.Replicas) && (v.Status.Clean || v.Status.Holder != nil) && !c.FollowPlaces(time.Time{})
}

// String names the place for people.
func (p Place) String() string { return fmt.Sprintf("%s/%s", p.Node, p.Pool) }
