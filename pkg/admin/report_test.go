package admin

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// world is a store and agents that answer what is set here, by address.
type world struct {
	*Admin
	t       *testing.T
	store   *memory.Store
	serving map[string][]volume.Serving
	records map[string][]agent.Record
	away    map[string]bool
}

func newWorld(t *testing.T, nodes ...string) *world {
	w := &world{t: t, store: memory.New(), serving: map[string][]volume.Serving{}, records: map[string][]agent.Record{}, away: map[string]bool{}}
	w.Admin = &Admin{Store: w.store, Agents: w, AgentTimeout: 10 * time.Second}
	for _, n := range nodes {
		_, err := w.store.Nodes().Create(t.Context(), volume.Node{ID: volume.NodeID(n), AgentAddr: n + ":1"})
		w.must(err)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// ListServing implements Agents.
func (w *world) ListServing(_ context.Context, addr string) ([]volume.Serving, error) {
	if w.away[addr] {
		return nil, fmt.Errorf("dial %s: %w", addr, volume.ErrUnavailable)
	}
	return w.serving[addr], nil
}

// ListRecords implements Agents.
func (w *world) ListRecords(_ context.Context, addr string) ([]agent.Record, error) {
	if w.away[addr] {
		return nil, fmt.Errorf("dial %s: %w", addr, volume.ErrUnavailable)
	}
	return w.records[addr], nil
}

// volume stores a ready volume with in-sync replicas on these nodes.
func (w *world) volume(name string, nodes ...string) volume.Volume {
	w.t.Helper()
	v := volume.Volume{ID: volume.IDFor(name), UID: volume.UID(uuid.NewString())}
	v.Spec = volume.Spec{Name: name, SizeBytes: 1 << 30, Params: volume.Params{Replicas: len(nodes), Locality: volume.LocalityPreferred}}
	v.Status = volume.Status{Phase: volume.PhaseReady, SizeBytes: 1 << 30, Clean: true, Epoch: 4}
	for _, n := range nodes {
		id := uuid.NewString()
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{Node: volume.NodeID(n), Pool: "p", ID: id, State: volume.InSync})
		v.Spec.Places = append(v.Spec.Places, volume.Place{Node: volume.NodeID(n), Pool: "p", ID: id, Made: true})
	}
	v, err := w.store.Volumes().Create(w.t.Context(), v)
	w.must(err)
	return v
}

func (w *world) edit(v volume.Volume, change func(*volume.Volume)) volume.Volume {
	w.t.Helper()
	now, err := w.store.Volumes().Get(w.t.Context(), v.ID)
	w.must(err)
	change(&now)
	now, err = w.store.Volumes().Update(w.t.Context(), now)
	w.must(err)
	return now
}

func TestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*volume.Volume)
		want   Health
	}{
		"all in sync": {func(*volume.Volume) {}, Healthy},
		"one behind":  {func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated }, Degraded},
		"one failed":  {func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Failed }, Degraded},
		"being copied": {func(v *volume.Volume) {
			v.Status.Replicas[1].State = volume.Rebuilding
			v.Status.Holder = &volume.Holder{Node: "a"}
		}, Resyncing},
		"one more is wanted": {func(v *volume.Volume) { v.Spec.Replicas = 4 }, Degraded},
		"one is to go":       {func(v *volume.Volume) { v.Spec.Places, v.Spec.Replicas = v.Spec.Places[:2], 2 }, Moving},
		"one is to be cleaned up": {func(v *volume.Volume) {
			v.Status.Retired = []volume.Retired{{Node: "d"}}
		}, Moving},
		"left unclean": {func(v *volume.Volume) { v.Status.Clean = false }, Moving},
		"no copy": {func(v *volume.Volume) {
			for i := range v.Status.Replicas {
				v.Status.Replicas[i].State = volume.Outdated
			}
		}, Faulty},
		"said to be faulty": {func(v *volume.Volume) {
			v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true})
		}, Faulty},
		"being deleted": {func(v *volume.Volume) { v.Status.Phase = volume.PhaseDeleting }, Deleting},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			v := w.edit(w.volume("x", "a", "b", "c"), c.change)
			w.serving["a:1"] = []volume.Serving{{Volume: v.ID, UID: v.UID, Epoch: 4, Replicas: []volume.ServedReplica{
				{Node: "b", Resyncing: v.Status.Replicas[1].State == volume.Rebuilding, DoneBytes: 1 << 29, TotalBytes: 1 << 30},
			}}}
			r, err := w.Status(t.Context())
			w.must(err)
			if len(r.Volumes) != 1 || r.Volumes[0].Health != c.want {
				t.Errorf("%+v, want %s", r.Volumes, c.want)
			}
			if c.want == Resyncing {
				d, err := w.Describe(t.Context(), "x")
				w.must(err)
				for _, m := range []*Resync{d.Replicas[1].Resync, r.Volumes[0].Replicas[1].Resync} {
					if m == nil || m.Percent() != 50 {
						t.Errorf("resync %+v", m)
					}
				}
			}
		})
	}
}

// What a holder of an earlier epoch tells is old.
func TestOldProgressIsNotShown(t *testing.T) {
	w := newWorld(t, "a", "b")
	v := w.edit(w.volume("x", "a", "b"), func(v *volume.Volume) {
		v.Status.Replicas[1].State = volume.Outdated
		v.Status.Holder = &volume.Holder{Node: "a"}
	})
	w.serving["a:1"] = []volume.Serving{{Volume: v.ID, UID: v.UID, Epoch: 3, Replicas: []volume.ServedReplica{{Node: "b", Resyncing: true, TotalBytes: 9}}}}
	d, err := w.Describe(t.Context(), string(v.ID))
	w.must(err)
	if d.Health != Degraded || d.Replicas[1].Resync != nil {
		t.Errorf("%+v", d)
	}
}

func TestNodesThatDontAnswer(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.volume("x", "a", "b")
	w.away["b:1"] = true
	r, err := w.Status(t.Context())
	w.must(err)
	if !r.Nodes[0].Answers || r.Nodes[1].Answers || r.Nodes[1].Error == "" || r.Nodes[1].Replicas != 1 {
		t.Errorf("%+v", r.Nodes)
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	x := w.volume("x")
	w.volume("y")
	for _, what := range []string{"x", string(x.ID), string(x.ID[:10])} {
		if v, err := w.Find(t.Context(), what); err != nil || v.ID != x.ID {
			t.Errorf("%q: %s, %v", what, v.ID, err)
		}
	}
	for _, what := range []string{"", "z", "hv-", "hv-zz"} {
		if _, err := w.Find(t.Context(), what); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("%q: %v", what, err)
		}
	}
}

func TestPercent(t *testing.T) {
	for done, want := range map[int64]int{0: 0, 1: 0, 500: 50, 999: 99, 1000: 100, 2000: 100} {
		if got := (&Resync{DoneBytes: done, TotalBytes: 1000}).Percent(); got != want {
			t.Errorf("%d of 1000: %d, want %d", done, got, want)
		}
	}
	if got := (&Resync{}).Percent(); got != 0 { // it is being found out
		t.Errorf("0 of 0: %d", got)
	}
}
