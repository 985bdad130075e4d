package controller

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var v1 = volume.IDFor("v")

func TestDelete(t *testing.T) {
	w := newWorld(t, 3)
	mustCreate(t, w.fresh(), request("v", 3))
	c := w.fresh()
	for range 2 { // deleting what isn't there is fine
		wantErr(t, c.Delete(context.Background(), v1), nil)
		_, err := c.Get(context.Background(), v1)
		wantErr(t, err, volume.ErrNotFound)
	}
	w.checkNodesEmpty("n0", "n1", "n2")
	w.reconcile(w.fresh())
	if left := w.volumes(); len(left) != 0 {
		t.Errorf("the store is left with %+v", left)
	}
}

func (w *world) checkNodesEmpty(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		w.node(id, func(n *fakeNode) {
			if uids := holds(n); len(uids) > 0 {
				w.t.Errorf("node %s holds %v", id, uids)
			}
		})
	}
}

func TestDeleteOfSomethingElse(t *testing.T) {
	for _, id := range []volume.ID{"", "no-such-volume", "../../etc", volume.IDFor("other")} {
		if err := newWorld(t, 1).fresh().Delete(context.Background(), id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestDeleteWhileHeld(t *testing.T) {
	w := newWorld(t, 3)
	mustCreate(t, w.fresh(), request("v", 2))
	w.edit(v1, heldBy("n1"))
	err := w.fresh().Delete(context.Background(), v1)
	wantErr(t, err, volume.ErrPrecondition)
	if !strings.Contains(err.Error(), "node n1") {
		t.Errorf("%q does not name the node", err)
	}
	w.checkSettled()
}

// TestDeleteWithADeadHolder also holds that the name is free at once, that the
// old holder can't write to the store any more, and that the replica on the dead
// node goes when the node comes back, and the new volume's doesn't.
func TestDeleteWithADeadHolder(t *testing.T) {
	w := newWorld(t, 3)
	old := mustCreate(t, w.fresh(), request("v", 3))
	w.edit(v1, heldBy("n1"))
	held, err := w.fresh().Get(context.Background(), v1)
	wantErr(t, err, nil)
	w.node("n1", func(n *fakeNode) { n.stale = true })
	wantErr(t, w.fresh().Delete(context.Background(), v1), nil)
	w.checkNodesEmpty("n0", "n2")

	if left := w.volumes()[0].Status; left.Epoch <= held.Status.Epoch || left.Holder != nil {
		t.Errorf("the old holder was not fenced: %+v", left)
	}
	held.Status.Replicas[0].State = volume.Outdated // the old holder reacts
	_, err = w.store.Volumes().Update(context.Background(), held)
	if err == nil {
		t.Error("the old holder's swap went through")
	}

	created := mustCreate(t, w.fresh(), request("v", 2))
	if created.UID == old.UID {
		t.Error("the UID was used again")
	}
	w.reconcile(w.fresh())
	w.node("n1", func(n *fakeNode) {
		if len(holds(n)) != 1 {
			t.Errorf("the dead node holds %v", holds(n))
		}
		n.stale = false
	})
	w.reconcile(w.fresh())
	w.checkSettled()
	w.checkNodesEmpty("n1")
	if left := w.volumes(); len(left) != 1 || left[0].UID != created.UID {
		t.Errorf("%+v", left)
	}
}

func TestTombstonesTakeRoomUntilTheReplicaIsGone(t *testing.T) {
	w := newWorld(t, 1)
	big := request("v", 1)
	big.Spec.SizeBytes = 150 * gib
	mustCreate(t, w.fresh(), big)
	w.node("n0", func(n *fakeNode) { n.hangs = true })
	wantErr(t, w.fresh().Delete(context.Background(), v1), nil)
	w.node("n0", func(n *fakeNode) { n.hangs = false })
	other := big
	other.Spec.Name = "other"
	_, err := w.fresh().Create(context.Background(), other)
	wantErr(t, err, volume.ErrNoSpace)
	w.reconcile(w.fresh())
	mustCreate(t, w.fresh(), other)
	w.checkSettled()
}

func TestTombstonesAreNoVolumes(t *testing.T) {
	w := newWorld(t, 1)
	v := mustCreate(t, w.fresh(), request("v", 1))
	w.node("n0", func(n *fakeNode) { n.hangs = true })
	c := w.fresh()
	wantErr(t, c.Delete(context.Background(), v1), nil)
	id := tombstoneID(v.UID)
	if len(w.volumes()) != 1 || w.volumes()[0].ID != id {
		t.Fatalf("%+v", w.volumes())
	}
	_, err := c.Get(context.Background(), id)
	wantErr(t, err, volume.ErrNotFound)
	_, err = c.Expand(context.Background(), id, 2*gib)
	wantErr(t, err, volume.ErrNotFound)
	wantErr(t, c.Delete(context.Background(), id), nil)
	all, err := c.List(context.Background())
	if err != nil || len(all) != 0 || len(w.volumes()) != 1 {
		t.Errorf("listed %v, %v; stored %v", all, err, w.volumes())
	}
}

// TestDeleteRacesWithAnOpening: a node takes the volume between the controller's
// look and its swap. It must not be deleted under it.
func TestDeleteRacesWithAnOpening(t *testing.T) {
	w := newWorld(t, 2)
	mustCreate(t, w.fresh(), request("v", 2))
	seen, err := w.fresh().Get(context.Background(), v1)
	wantErr(t, err, nil)
	w.edit(v1, heldBy("n0"))
	err = w.fresh().abandon(context.Background(), seen)
	wantErr(t, err, volume.ErrConflict)
	wantErr(t, w.fresh().Delete(context.Background(), v1), volume.ErrPrecondition)
	w.checkSettled()
}

func TestReplicasAreRemovedOnTombstonesOnly(t *testing.T) {
	w := newWorld(t, 1)
	v := mustCreate(t, w.fresh(), request("v", 1))
	err := w.fresh().removeReplica(context.Background(), "n0:1", &v)
	if !errors.Is(err, volume.ErrPrecondition) {
		t.Error(err)
	}
	w.checkSettled()
}
