package volume

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// parseMembers reads "a=InSync b=Outdated" as replicas, and "a b+ c!" as places, of
// which those with a plus are made, and one with an exclamation mark has another
// ID than the replica on its node.
func parseMembers(replicas, places string) Volume {
	v := Volume{Status: Status{Phase: PhaseReady, Epoch: 7}}
	for _, f := range strings.Fields(replicas) {
		node, state, _ := strings.Cut(f, "=")
		v.Status.Replicas = append(v.Status.Replicas, Replica{Node: NodeID(node), ID: "old-" + node, State: ReplicaState(state)})
	}
	for _, f := range strings.Fields(places) {
		f, other := strings.CutSuffix(f, "!")
		node, made := strings.CutSuffix(f, "+")
		p := Place{Node: NodeID(node), ID: "new-" + node, Made: made}
		if i := v.ReplicaOn(p.Node); i >= 0 && !other {
			p.ID = v.Status.Replicas[i].ID
		}
		v.Spec.Places = append(v.Spec.Places, p)
	}
	return v
}

func members(v *Volume) string {
	var out []string
	for _, r := range v.Status.Replicas {
		out = append(out, fmt.Sprintf("%s=%s", r.Node, r.State))
	}
	for _, r := range v.Status.Retired {
		out = append(out, fmt.Sprintf("%s@%d", r.Node, r.Epoch))
	}
	return strings.Join(out, " ")
}

func TestFollowPlaces(t *testing.T) {
	for name, c := range map[string]struct{ replicas, places, want string }{
		"no places: as it is":                    {"a=InSync b=Outdated", "", "a=InSync b=Outdated"},
		"as wanted":                              {"a=InSync b=Outdated", "a+ b+", "a=InSync b=Outdated"},
		"a new one begins as Outdated":           {"a=InSync", "a+ b+", "a=InSync b=Outdated"},
		"one that is not made yet waits":         {"a=InSync", "a+ b", "a=InSync"},
		"the old one goes last":                  {"a=InSync b=Outdated", "a+ c+", "a=InSync b=Outdated c=Outdated"},
		"not while the new one is being filled":  {"a=InSync b=InSync c=Rebuilding", "a+ c+", "a=InSync b=InSync c=Rebuilding"},
		"when the new one is in sync":            {"a=InSync b=Outdated c=InSync", "a+ c+", "a=InSync c=InSync b@7"},
		"an in-sync one goes like any other":     {"a=InSync b=InSync c=InSync", "a+ c+", "a=InSync c=InSync b@7"},
		"not the last copy":                      {"a=InSync b=Outdated", "b+", "a=InSync b=Outdated"},
		"one that failed, to be made anew":       {"a=InSync b=Failed", "a+ b!", "a=InSync b@7"},
		"not one that is in sync":                {"a=InSync b=InSync", "a+ b!", "a=InSync b=InSync"},
		"nor the last copy":                      {"a=Outdated b=Failed", "a+ b!", "a=Outdated b=Failed"},
		"no slot: one that is not in sync first": {"a=InSync b=InSync c=InSync d=InSync e=Outdated", "a+ b+ c+ d+ f+", "a=InSync b=InSync c=InSync d=InSync f=Outdated e@7"},
		"no slot, all in sync: it waits":         {"a=InSync b=InSync c=InSync d=InSync e=InSync", "a+ b+ c+ d+ f+", "a=InSync b=InSync c=InSync d=InSync e=InSync"},
	} {
		t.Run(name, func(t *testing.T) {
			v := parseMembers(c.replicas, c.places)
			before := members(&v)
			changed := v.FollowPlaces(time.Time{})
			if got := members(&v); got != c.want || changed != (got != before) {
				t.Errorf("%q, changed %t; want %q", got, changed, c.want)
			}
			if v.FollowPlaces(time.Time{}) && !strings.Contains(name, "slot") {
				t.Error("a second look changes something")
			}
		})
	}
}

// A node whose retired replica is still there gets no other one of the volume.
func TestFollowPlacesWaitsForTheRetired(t *testing.T) {
	v := parseMembers("a=InSync", "a+ b+")
	v.Status.Retired, v.Status.Clean = []Retired{{Node: "b", Epoch: 3}}, true
	if v.FollowPlaces(time.Time{}) || len(v.Status.Replicas) != 1 {
		t.Errorf("it became %q", members(&v))
	}
	if !v.Settled() {
		t.Error("there is something to repair, but nothing that a mirror could do")
	}
	v.Status.Retired = nil
	if !v.FollowPlaces(time.Time{}) || v.Status.Replicas[1].ID != "new-b" {
		t.Errorf("it became %+v", v.Status.Replicas)
	}
}

// Whatever is wanted when, an in-sync replica is taken off only if all that are
// wanted are in sync, and one stays.
func TestFollowPlacesNeverLosesData(t *testing.T) {
	nodes := []string{"a", "b", "c", "d", "e", "f", "g"}
	states := []ReplicaState{InSync, Outdated, Rebuilding, Failed}
	for seed := range uint64(20000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		v := Volume{}
		for _, i := range rng.Perm(len(nodes))[:1+rng.IntN(MaxReplicas)] {
			v.Status.Replicas = append(v.Status.Replicas, Replica{Node: NodeID(nodes[i]), State: states[rng.IntN(len(states))]})
		}
		for _, i := range rng.Perm(len(nodes))[:1+rng.IntN(MaxReplicas)] {
			v.Spec.Places = append(v.Spec.Places, Place{Node: NodeID(nodes[i]), ID: [...]string{"", "", "x"}[rng.IntN(3)], Made: rng.IntN(3) > 0})
		}
		was := v.Clone()
		v.FollowPlaces(time.Time{})
		lost := was.CountState(InSync) - v.CountState(InSync)
		if lost > 0 && (!was.allPlacesInSync() || v.CountState(InSync) == 0) || len(v.Status.Replicas) > MaxReplicas {
			t.Fatalf("seed %d: %q became %q, wanted %v", seed, members(&was), members(&v), v.Spec.Places)
		}
		for _, r := range v.Status.Replicas {
			if was.ReplicaOn(r.Node) < 0 && r.State != Outdated {
				t.Fatalf("seed %d: new replica %+v", seed, r)
			}
		}
		gone := func(r Replica) bool { return v.ReplicaOn(r.Node) < 0 && !v.RetiredOn(r.Node) }
		if slices.ContainsFunc(was.Status.Replicas, gone) {
			t.Fatalf("seed %d: a replica is forgotten: %q became %q", seed, members(&was), members(&v))
		}
	}
}
