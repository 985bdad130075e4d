package controller

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// mirrors does what the holders of the volumes would: replicas follow their
// places, and those behind get in sync while they are there and some other is.
func (w *world) mirrors() {
	w.t.Helper()
	for _, v := range w.volumes() {
		if v.Status.Phase != volume.PhaseReady {
			continue
		}
		w.edit(v.ID, func(v *volume.Volume) {
			reached := false
			for i := range v.Status.Replicas {
				r := &v.Status.Replicas[i]
				has := w.has(r.Node, v.UID)
				if r.State == volume.InSync && !has {
					r.State = volume.Outdated
				}
				reached = reached || r.State == volume.InSync
			}
			if !reached {
				w.t.Fatalf("volume %s: no in-sync replica is there: %+v", v.ID, v.Status)
			}
			for i := range v.Status.Replicas {
				if r := &v.Status.Replicas[i]; r.State == volume.Outdated && w.has(r.Node, v.UID) {
					r.State = volume.InSync
				}
			}
			if v.FollowPlaces(time.Time{}) {
				v.Status.Epoch++
			}
		})
	}
}

// has says whether the node is there with a replica.
func (w *world) has(node volume.NodeID, uid volume.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[string(node)+":1"]
	_, ok := n.replicas[uid]
	return ok && !n.stale
}

// settle lets controller and mirrors work, and time pass, until nothing changes.
func (w *world) settle(r *reconciler, step time.Duration) {
	w.t.Helper()
	for range 12 {
		if err := r.pass(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		w.mirrors()
		w.now.Advance(step)
	}
}

func (w *world) evict(node volume.NodeID) {
	w.t.Helper()
	n, err := w.store.Nodes().Get(context.Background(), node)
	if err == nil {
		n.Evicting = true
		_, err = w.store.Nodes().Update(context.Background(), n)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func nodes(v *volume.Volume) []string {
	var out []string
	for _, r := range v.Status.Replicas {
		out = append(out, string(r.Node))
	}
	slices.Sort(out)
	return out
}

func TestReplicasMove(t *testing.T) {
	away := func(names ...string) func(*world, volume.ID) {
		return func(w *world, _ volume.ID) {
			for _, n := range names {
				w.node(n, func(f *fakeNode) { f.stale = true })
			}
		}
	}
	count := func(n int) func(*world, volume.ID) {
		return func(w *world, id volume.ID) {
			if _, err := w.fresh().SetReplicas(context.Background(), id, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	fail := func(w *world, id volume.ID) {
		w.edit(id, func(v *volume.Volume) { v.Status.Replicas[0].State = volume.Failed })
	}
	for name, c := range map[string]struct {
		nodes int
		event func(*world, volume.ID)
		step  time.Duration // of the clock, per pass
		want  []string      // nodes of the replicas
		stays int           // replicas that lie on nodes that are away
		fewer int           // than three are in sync
	}{
		"nothing happens":                      {nodes: 4, event: away(), step: time.Minute, want: []string{"n0", "n1", "n2"}},
		"a node is away for a while":           {nodes: 4, event: away("n1"), step: time.Second, want: []string{"n0", "n1", "n2"}, fewer: 1},
		"a node stays away":                    {nodes: 4, event: away("n1"), step: time.Minute, want: []string{"n0", "n2", "n3"}, stays: 1},
		"a node stays away, no other is there": {nodes: 3, event: away("n1"), step: time.Minute, want: []string{"n0", "n1", "n2"}, fewer: 1},
		"half of the nodes stay away":          {nodes: 4, event: away("n1", "n2"), step: time.Minute, want: []string{"n0", "n1", "n2"}, fewer: 2},
		"two of six stay away":                 {nodes: 6, event: away("n1", "n2"), step: time.Minute, want: []string{"n0", "n3", "n4"}, stays: 2},
		"one more is wanted":                   {nodes: 4, event: count(4), step: time.Second, want: []string{"n0", "n1", "n2", "n3"}},
		"more than there are nodes":            {nodes: 4, event: count(5), step: time.Second, want: []string{"n0", "n1", "n2", "n3"}},
		"fewer are wanted":                     {nodes: 4, event: count(1), step: time.Second, want: []string{"n0"}},
		"a node is evicted":                    {nodes: 4, event: func(w *world, _ volume.ID) { w.evict("n0") }, step: time.Second, want: []string{"n1", "n2", "n3"}},
		"a node is evicted, no other is there": {nodes: 3, event: func(w *world, _ volume.ID) { w.evict("n0") }, step: time.Second, want: []string{"n0", "n1", "n2"}},
		"a replica failed":                     {nodes: 4, event: fail, step: time.Second, want: []string{"n1", "n2", "n3"}},
		"a replica failed, no other node":      {nodes: 3, event: fail, step: time.Second, want: []string{"n0", "n1", "n2"}},
		"a replica's files vanished": {nodes: 3, event: func(w *world, id volume.ID) {
			w.node("n2", func(f *fakeNode) { clear(f.replicas) })
		}, step: 2 * time.Minute, want: []string{"n0", "n1", "n2"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.nodes)
			ctrl := w.fresh()
			v := mustCreate(t, ctrl, request("v", 3))
			r := newReconciler(ctrl)
			c.event(w, v.ID)
			w.settle(r, c.step)
			v = w.volumes()[0]
			if got := nodes(&v); !slices.Equal(got, c.want) || v.CountState(volume.InSync) < min(len(got), 3)-c.fewer {
				t.Errorf("replicas %+v, want them on %v", v.Status.Replicas, c.want)
			}
			if len(v.Status.Retired) != c.stays {
				t.Errorf("retired %+v", v.Status.Retired)
			}
			w.returned()
			w.settle(r, time.Second)
			w.checkFiles()
		})
	}
}

// checkFiles holds that exactly the listed replicas are on the nodes, all in sync.
func (w *world) checkFiles() {
	w.t.Helper()
	for _, v := range w.volumes() {
		if v.CountState(volume.InSync) != len(v.Status.Replicas) || len(v.Status.Retired) > 0 || !v.Settled() {
			w.t.Errorf("volume %s is not settled: %+v", v.ID, v.Status)
		}
		for _, n := range w.nodes {
			if has := w.has(n.id, v.UID); has != (v.ReplicaOn(n.id) >= 0) {
				w.t.Errorf("node %s has a replica of %s: %t, listed: %t", n.id, v.ID, has, !has)
			}
		}
	}
}

// The new replica is made and in sync before the old one goes, at every moment.
func TestReplacementNeverHasFewerCopies(t *testing.T) {
	w := newWorld(t, 6)
	ctrl := w.fresh()
	v := mustCreate(t, ctrl, request("v", 3))
	r := newReconciler(ctrl)
	for _, node := range []volume.NodeID{"n0", "n1", "n2"} {
		w.evict(node)
		for range 8 {
			if err := r.pass(context.Background()); err != nil {
				t.Fatal(err)
			}
			w.mirrors()
			if v = w.volumes()[0]; v.CountState(volume.InSync) < 3 {
				t.Fatalf("while %s is evicted: %+v", node, v.Status)
			}
		}
	}
	if got := nodes(&v); !slices.Equal(got, []string{"n3", "n4", "n5"}) {
		t.Errorf("replicas on %v", got)
	}
	w.checkFiles()
}

// The controller dies at each of its calls to store and agents in turn, and
// another goes on.
func TestReplacementSurvivesCrashes(t *testing.T) {
	total := 0
	for how, name := range map[memory.Fault]string{memory.Before: "before", memory.After: "after", memory.Late: "late"} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := newWorld(t, 5)
				mustCreate(t, w.fresh(), request("v", 3))
				w.evict("n0")
				w.node("n1", func(f *fakeNode) { f.refuses = nil })
				conn := w.store.Connect()
				dying := &crash{at: n, how: how, world: w}
				conn.SetFault(func(memory.Op) memory.Fault { return dying.next() })
				r := newReconciler(w.controller(conn, dying))
				for range 6 {
					_ = r.pass(context.Background()) // it may die in it
					w.mirrors()
				}
				dying.settle(conn)
				w.settle(newReconciler(w.fresh()), time.Second)
				v := w.volumes()[0]
				if len(v.Status.Replicas) != 3 || v.ReplicaOn("n0") >= 0 {
					t.Fatalf("after a crash at call %d: %+v", n, v.Status)
				}
				w.checkFiles()
				if t.Failed() {
					t.Fatalf("after a crash at call %d", n)
				}
				if !dying.happened() {
					return
				}
				total++
			}
		})
	}
	t.Logf("%d crashes", total)
}

// A node whose pool refuses loses the place to another.
func TestRefusedPlaceGoesElsewhere(t *testing.T) {
	w := newWorld(t, 5)
	ctrl := w.fresh()
	mustCreate(t, ctrl, request("v", 3))
	w.node("n3", func(f *fakeNode) { f.refuses = fmt.Errorf("full: %w", volume.ErrNoSpace) })
	w.evict("n0")
	r := newReconciler(ctrl)
	for range 6 {
		_ = r.pass(context.Background()) // the refusal is an error of the pass
		w.mirrors()
	}
	v := w.volumes()[0]
	if got := nodes(&v); !slices.Equal(got, []string{"n1", "n2", "n4"}) {
		t.Errorf("replicas on %v", got)
	}
}

// Replicas that no store lists: one whose volume is unknown is left alone, one of
// a volume that lives goes to the trash, but not while that is not in sync.
func TestStrayReplicas(t *testing.T) {
	w := newWorld(t, 4)
	ctrl := w.fresh()
	v := mustCreate(t, ctrl, request("v", 2))
	unknown := volume.UID("00000000-0000-4000-8000-000000000009")
	w.node("n3", func(f *fakeNode) {
		f.replicas[v.UID] = NewReplica{Volume: v.ID, UID: v.UID, Pool: "data"}
		f.replicas[unknown] = NewReplica{Volume: volume.IDFor("other"), UID: unknown, Pool: "data"}
	})
	w.edit(v.ID, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Failed })
	r := newReconciler(ctrl)
	for range 3 {
		w.now.Advance(2 * time.Minute)
		if _, err := r.sweep(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if !w.has("n3", v.UID) {
		t.Fatal("it went although the volume is not in sync")
	}
	w.edit(v.ID, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.InSync })
	for range 2 {
		w.now.Advance(2 * time.Minute)
		if _, err := r.sweep(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	w.node("n3", func(f *fakeNode) {
		if !slices.Equal(f.trash, []volume.UID{v.UID}) || len(f.replicas) != 1 {
			t.Errorf("trash %v, replicas %v", f.trash, holds(f))
		}
	})
}

func TestSetReplicasRefuses(t *testing.T) {
	w := newWorld(t, 3)
	c := w.fresh()
	loop := request("loop", 1)
	loop.Spec.Params.Locality = volume.LocalityStrict
	strict := request("strict", 2)
	strict.Spec.Params.Locality = volume.LocalityStrict
	for name, tt := range map[string]struct {
		id   volume.ID
		n    int
		want error
	}{
		"none":             {mustCreate(t, c, request("a", 2)).ID, 0, volume.ErrInvalid},
		"too many":         {volume.IDFor("a"), 6, volume.ErrInvalid},
		"no such volume":   {volume.IDFor("z"), 2, volume.ErrNotFound},
		"a loop device":    {mustCreate(t, c, loop).ID, 2, volume.ErrPrecondition},
		"strict, more":     {mustCreate(t, c, strict).ID, 3, volume.ErrPrecondition},
		"strict, fewer":    {volume.IDFor("strict"), 1, nil},
		"as many as it is": {volume.IDFor("loop"), 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.SetReplicas(context.Background(), tt.id, tt.n)
			wantErr(t, err, tt.want)
		})
	}
}
