package admin

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		t.Fatalf("err = %v, want %v", err, want)
	}
}

func state(node int, s volume.ReplicaState) func(*volume.Volume) {
	return func(v *volume.Volume) { v.Status.Replicas[node].State = s }
}

// An Outdated replica is promoted only by name, with the loss stated, and when no
// in-sync one can be had.
func TestPromote(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	v := w.edit(w.volume("x", "a", "b", "c"), func(v *volume.Volume) {
		since := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
		v.Status.Replicas[1].State, v.Status.Replicas[1].Since = volume.Outdated, since
		v.Status.Replicas[2].State, v.Status.Replicas[2].Since = volume.Rebuilding, since
		v.Status.Holder = &volume.Holder{Node: "a", Nonce: "n"}
		for i := range v.Spec.Places {
			v.Spec.Places[i].ID = v.Status.Replicas[i].ID
		}
	})
	for node, want := range map[volume.NodeID]error{"a": volume.ErrPrecondition, "b": volume.ErrPrecondition, "z": volume.ErrPrecondition} {
		_, err := w.Promote(t.Context(), "x", node)
		wantErr(t, err, want)
	}
	w.away["a:1"] = true
	said, err := w.Promotion(t.Context(), "x", "b")
	wantErr(t, err, nil)
	if !strings.Contains(said.Loss, "2026-05-06T07:08:09Z") || !strings.Contains(said.Loss, "on a, and will be overwritten") || said.Done {
		t.Errorf("%+v", said)
	}
	if mixed, err := w.Promotion(t.Context(), "x", "c"); err != nil || !strings.Contains(mixed.Loss, "mixture") {
		t.Errorf("%+v, %v", mixed, err)
	}
	if now, _ := w.Find(t.Context(), "x"); now.Version != v.Version {
		t.Fatal("asking has changed something")
	}
	done, err := w.Promote(t.Context(), "x", "b")
	wantErr(t, err, nil)
	now, err := w.Find(t.Context(), "x")
	wantErr(t, err, nil)
	if !done.Done || now.Status.Epoch != v.Status.Epoch+1 || now.Status.Holder != nil || now.Status.Clean {
		t.Errorf("%+v", now.Status)
	}
	for i, want := range []volume.ReplicaState{volume.Outdated, volume.InSync, volume.Outdated} {
		r, old := now.Status.Replicas[i], v.Status.Replicas[i]
		if r.State != want || (r.ID == old.ID) != (want == volume.InSync) || now.Spec.Places[i].ID != r.ID {
			t.Errorf("replica %d is %+v, was %+v, place %+v", i, r, old, now.Spec.Places[i])
		}
	}
	if c, ok := now.Condition(volume.ConditionDataLossAccepted); !ok || !c.Status || c.Message != done.Loss {
		t.Errorf("condition %+v", c)
	}
}

func TestPromoteRefusesTheFailed(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.edit(w.volume("x", "a", "b"), state(1, volume.Failed))
	w.away["a:1"] = true
	_, err := w.Promote(t.Context(), "x", "b")
	wantErr(t, err, volume.ErrPrecondition)
}

func TestEvict(t *testing.T) {
	w := newWorld(t, "a", "b")
	x := w.volume("x", "a", "b")
	w.volume("y", "b")
	there, err := w.Evict(t.Context(), "a", EvictNode)
	wantErr(t, err, nil)
	if n, _ := w.store.Nodes().Get(t.Context(), "a"); !n.Evicting || len(there) != 1 || there[0] != x.ID {
		t.Errorf("%+v, %v", n, there)
	}
	_, err = w.Evict(t.Context(), "a", CancelEviction)
	wantErr(t, err, nil)
	if n, _ := w.store.Nodes().Get(t.Context(), "a"); n.Evicting {
		t.Error("it is still being evicted")
	}
	_, err = w.Evict(t.Context(), "z", EvictNode)
	wantErr(t, err, volume.ErrNotFound)
}

func TestSetReplicas(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.volume("x", "a", "b")
	v, err := w.SetReplicas(t.Context(), "x", 1)
	wantErr(t, err, nil)
	if v.Spec.WantedReplicas() != 1 || v.Spec.Params.Replicas != 2 {
		t.Errorf("%+v", v.Spec)
	}
	_, err = w.SetReplicas(t.Context(), "x", 9)
	wantErr(t, err, volume.ErrInvalid)
}
