package controller

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func pass(t *testing.T, r *reconciler) {
	t.Helper()
	if err := r.pass(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func halfCreated(v *volume.Volume) {
	v.Spec = request("v", 2).Spec
	v.Status.Phase = volume.PhaseCreating
	v.Status.Replicas = []volume.Replica{{Node: "n0", Pool: "data", State: volume.InSync}, {Node: "n1", Pool: "data", State: volume.InSync}}
}

func TestHalfCreatedVolumesAreGivenUpAfterADeadline(t *testing.T) {
	w := newWorld(t, 2)
	v := w.leave(halfCreated)
	w.node("n0", func(n *fakeNode) {
		n.replicas[v.UID] = NewReplica{Volume: v.ID, UID: v.UID, Pool: "data", SizeBytes: gib}
	})
	c := w.fresh()
	r := newReconciler(c)
	pass(t, r)
	w.now.Advance(c.opt.CreateDeadline)
	w.edit(v1, func(*volume.Volume) {}) // a change: somebody is at work
	pass(t, r)
	w.now.Advance(c.opt.CreateDeadline - time.Second)
	pass(t, r)
	if got := w.volumes(); len(got) != 1 || got[0].Status.Phase != volume.PhaseCreating {
		t.Fatalf("before the deadline: %+v", got)
	}
	w.now.Advance(time.Second)
	pass(t, r)
	w.checkNodesEmpty("n0", "n1")
	w.reconcile(c)
	if got := w.volumes(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestGivingUpRacesWithTheRepetition: whoever swaps first wins, and the caller
// gets a whole volume either way.
func TestGivingUpRacesWithTheRepetition(t *testing.T) {
	w := newWorld(t, 2)
	left := w.leave(halfCreated)
	given := false
	c := w.controller(w.store.Connect(), agentsFunc{Agents: w, create: func(ctx context.Context, addr string, r NewReplica) error {
		if !given { // the repetition is making replicas just when the other gives the volume up
			given = true
			if err := w.fresh().abandon(ctx, left); err != nil {
				t.Error(err)
			}
		}
		return w.CreateReplica(ctx, addr, r)
	}})
	c.opt.Agents = serial{c.opt.Agents, make(chan struct{}, 1)}
	v := mustCreate(t, c, request("v", 2))
	if v.UID == left.UID {
		t.Error("a volume that was given up is alive")
	}
	w.reconcile(w.fresh()) // finds the replicas that came late, by their tombstone
	w.checkSettled()
	if err := w.fresh().abandon(context.Background(), left); err == nil {
		t.Error("gave up a volume of another UID")
	}
	w.checkSettled()
}

// serial makes replicas one at a time.
type serial struct {
	Agents
	turn chan struct{}
}

func (s serial) CreateReplica(ctx context.Context, addr string, r NewReplica) error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	return s.Agents.CreateReplica(ctx, addr, r)
}

func TestTombstonesOutliveTheirReplicasByAGrace(t *testing.T) {
	w := newWorld(t, 2)
	v := mustCreate(t, w.fresh(), request("v", 2))
	c := w.fresh()
	wantErr(t, c.Delete(context.Background(), v1), nil)
	r := newReconciler(c)
	pass(t, r)
	late := func() {
		w.node("n1", func(n *fakeNode) {
			n.replicas[v.UID] = NewReplica{Volume: v.ID, UID: v.UID, Pool: "data", SizeBytes: gib}
		})
	}
	late() // a CreateReplica that took its time
	w.now.Advance(c.opt.TombstoneGrace)
	pass(t, r)
	w.checkNodesEmpty("n1")
	if len(w.volumes()) != 1 {
		t.Fatal("the tombstone's grace did not begin anew")
	}
	pass(t, r)
	w.node("n0", func(n *fakeNode) { n.hangs = true })
	w.now.Advance(c.opt.TombstoneGrace)
	pass(t, r)
	if len(w.volumes()) != 1 {
		t.Fatal("the tombstone went though a node did not answer")
	}
	w.node("n0", func(n *fakeNode) { n.hangs = false })
	pass(t, r)
	if got := w.volumes(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestOrphansAreReportedOnceAndKept(t *testing.T) {
	w := newWorld(t, 2)
	mustCreate(t, w.fresh(), request("v", 2))
	uid := volume.UID(uuid.NewString())
	w.node("n1", func(n *fakeNode) {
		n.replicas[uid] = NewReplica{Volume: volume.IDFor("lost"), UID: uid, Pool: "data", SizeBytes: gib}
	})
	var log bytes.Buffer
	c := New(Options{Store: w.store.Connect(), Agents: w, Liveness: w, Now: w.now.Now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r := newReconciler(c)
	for range 3 {
		pass(t, r)
		w.now.Advance(c.opt.SweepInterval)
	}
	want := fmt.Sprintf("node=n1 pool=data volume=%s uid=%s\n", volume.IDFor("lost"), uid)
	if n := strings.Count(log.String(), want); n != 1 || strings.Count(log.String(), "orphan") != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
	w.node("n1", func(n *fakeNode) {
		if len(holds(n)) != 2 {
			t.Errorf("node n1 holds %v", holds(n))
		}
	})

	// One that was away and comes again is news.
	for _, stale := range []bool{true, false} {
		w.node("n1", func(n *fakeNode) { n.stale = stale })
		pass(t, r)
		w.now.Advance(c.opt.SweepInterval)
	}
	if n := strings.Count(log.String(), want); n != 2 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

// TestRunCollects runs the reconciler for real: a node comes back and loses the
// replica of the volume that was deleted meanwhile.
func TestRunCollects(t *testing.T) {
	w := newWorld(t, 2)
	mustCreate(t, w.fresh(), request("v", 2))
	w.node("n1", func(n *fakeNode) { n.stale = true })
	c := New(Options{
		Store: w.store.Connect(), Agents: w, Liveness: w,
		ReconcileInterval: 10 * time.Millisecond, TombstoneGrace: time.Millisecond, SweepInterval: 10 * time.Millisecond,
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	events, err := w.store.Volumes().Watch(ctx, "")
	wantErr(t, err, nil)
	wantErr(t, c.Delete(ctx, v1), nil)
	w.checkNodesEmpty("n0")
	w.node("n1", func(n *fakeNode) { n.stale = false })
	for range events {
		if len(w.volumes()) == 0 {
			break
		}
	}
	w.checkNodesEmpty("n1")
	cancel()
	wantErr(t, <-ended, nil)
}
