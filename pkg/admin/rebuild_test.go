package admin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// has gives a node a replica that has seen an epoch, with a copy of the object as
// it was at an epoch and version; version 0: none.
func (w *world) has(node string, v volume.Volume, epoch volume.Epoch, copyAt volume.Epoch, version int64) {
	w.t.Helper()
	r := agent.Record{Volume: v.ID, UID: v.UID, Pool: "p", SizeBytes: 1 << 30, Epoch: epoch}
	if version > 0 {
		v.Status.Epoch = copyAt
		b, err := json.Marshal(volume.Kept{Version: version, Volume: v})
		w.must(err)
		r.Object = b
	}
	w.records[node+":1"] = append(w.records[node+":1"], r)
}

// forget empties the store, except for nodes.
func (w *world) forget(v volume.Volume) {
	w.t.Helper()
	now, err := w.store.Volumes().Get(w.t.Context(), v.ID)
	w.must(err)
	w.must(w.store.Volumes().Delete(w.t.Context(), now))
}

func verdict(r Rebuilt) string {
	join := func(nodes []volume.NodeID) string {
		slices.Sort(nodes)
		return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(nodes)), ","), "[]")
	}
	return fmt.Sprintf("epoch %d: %s / %s", r.Epoch, join(r.InSync), join(r.Behind))
}

func TestRebuildStore(t *testing.T) {
	for name, c := range map[string]struct {
		setup func(*world, volume.Volume)
		want  string
		why   string
	}{
		"all agree": {func(w *world, v volume.Volume) {
			for _, n := range []string{"a", "b", "c"} {
				w.has(n, v, 4, 4, 9)
			}
		}, "epoch 4: a,b,c / ", ""},
		"one took no part in the last opening": {func(w *world, v volume.Volume) {
			w.has("a", v, 6, 4, 9)
			w.has("b", v, 6, 4, 9)
			w.has("c", v, 4, 4, 9)
		}, "epoch 6: a,b / c", ""},
		"the newest copy counts": {func(w *world, v volume.Volume) {
			w.has("a", v, 4, 4, 8)
			v.Status.Replicas = slices.Clone(v.Status.Replicas)
			v.Status.Replicas[0].State = volume.Outdated
			w.has("b", v, 4, 4, 9)
			w.has("c", v, 4, 3, 12) // of an earlier epoch, whatever its version
		}, "epoch 4: b,c / a", ""},
		"a promotion that no replica was told of stands": {func(w *world, v volume.Volume) {
			w.has("b", v, 7, 6, 8)
			v.Status.Replicas = slices.Clone(v.Status.Replicas)
			v.Status.Replicas[1].State, v.Status.Replicas[2].State = volume.Outdated, volume.Outdated
			w.has("a", v, 3, 8, 9)
			w.has("c", v, 7, 6, 8)
		}, "epoch 8: a / b,c", ""},
		"a replica is gone": {func(w *world, v volume.Volume) {
			w.has("a", v, 4, 4, 9)
			w.has("b", v, 4, 4, 9)
		}, "epoch 4: a,b / c", ""},
		"a damaged one": {func(w *world, v volume.Volume) {
			w.has("a", v, 4, 4, 9)
			w.has("b", v, 4, 4, 9)
			w.records["b:1"][0].Failure = "a sync failed"
			w.has("c", v, 4, 4, 9)
		}, "epoch 4: a,c / b", ""},
		"nobody has a copy": {func(w *world, v volume.Volume) { w.has("a", v, 4, 0, 0) }, "epoch 0:  / ", "no node has a copy"},
		"none is known to be in sync": {func(w *world, v volume.Volume) {
			v.Status.Replicas = slices.Clone(v.Status.Replicas)
			v.Status.Replicas[0].State = volume.Outdated
			w.has("a", v, 9, 9, 9)
		}, "epoch 9:  / a,b,c", "no replica is known to be in sync"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b", "c")
			v := w.volume("x", "a", "b", "c")
			w.forget(v)
			c.setup(w, v)
			all, err := w.RebuildStore(t.Context(), RebuildOptions{})
			wantErr(t, err, nil)
			if len(all) != 1 || verdict(all[0]) != c.want || !strings.HasPrefix(all[0].Why, c.why) || all[0].Done != (c.why == "") {
				t.Fatalf("%s %+v; want %s", verdict(all[0]), all, c.want)
			}
			if c.why != "" {
				return
			}
			now, err := w.Find(t.Context(), "x")
			wantErr(t, err, nil)
			if now.UID != v.UID || now.Status.Epoch != all[0].Epoch || now.Status.Holder != nil || now.Status.Clean || now.Spec.Name != "x" {
				t.Errorf("%+v", now)
			}
			for _, m := range now.Status.Replicas {
				if renewed := m.ID != v.Status.Replicas[v.ReplicaOn(m.Node)].ID; renewed != (m.State != volume.InSync) {
					t.Errorf("replica %+v, renewed %t", m, renewed)
				}
			}
		})
	}
}

func TestRebuildStoreRefuses(t *testing.T) {
	w := newWorld(t, "a", "b")
	x, y := w.volume("x", "a", "b"), w.volume("y", "a")
	_, err := w.RebuildStore(t.Context(), RebuildOptions{})
	wantErr(t, err, volume.ErrPrecondition)

	w.forget(y)
	w.has("a", x, 4, 4, 5)
	w.has("a", y, 4, 4, 5)
	w.away["b:1"] = true
	all, err := w.RebuildStore(t.Context(), RebuildOptions{Force: true, DryRun: true})
	wantErr(t, err, nil)
	for _, r := range all {
		if r.Done || r.Why == "" {
			t.Errorf("a dry run: %+v", r)
		}
	}
	all, err = w.RebuildStore(t.Context(), RebuildOptions{Force: true})
	wantErr(t, err, nil)
	for _, r := range all {
		if r.Done != (r.UID == y.UID) {
			t.Errorf("%+v", r)
		}
	}
	w.forget(x)
	w.forget(y)
	_, err = w.RebuildStore(t.Context(), RebuildOptions{})
	wantErr(t, err, volume.ErrUnavailable) // b does not answer
	_, err = newWorld(t).RebuildStore(t.Context(), RebuildOptions{})
	wantErr(t, err, volume.ErrUnavailable) // nobody has registered
}

// A store that was set back: what a replica has seen since is found, and the
// volume may be opened again.
func TestRebuildStoreThatWentBack(t *testing.T) {
	w := newWorld(t, "a", "b")
	v := w.volume("x", "a", "b")
	w.has("a", v, 9, 9, 20)
	w.has("b", v, 7, 7, 15)
	w.edit(v, func(v *volume.Volume) {
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: volume.ReasonStoreBehind})
	})
	all, err := w.RebuildStore(t.Context(), RebuildOptions{Force: true})
	wantErr(t, err, nil)
	now, err := w.Find(t.Context(), "x")
	wantErr(t, err, nil)
	if !all[0].Done || verdict(all[0]) != "epoch 9: a / b" || now.Status.Epoch != 9 || behind(&now) {
		t.Errorf("%+v\n%+v", all, now.Status)
	}
}

// A volume that was deleted and created again under its name is not undone.
func TestRebuildStoreKeepsTheNewerCreation(t *testing.T) {
	w := newWorld(t, "a", "b")
	old := w.volume("x", "a")
	w.forget(old)
	now := w.volume("x", "b")
	w.forget(now)
	w.has("a", old, 30, 30, 5)
	w.has("b", now, 2, 2, 50)
	all, err := w.RebuildStore(t.Context(), RebuildOptions{})
	wantErr(t, err, nil)
	for _, r := range all {
		if r.Done != (r.UID == now.UID) {
			t.Errorf("%+v", r)
		}
	}
}
