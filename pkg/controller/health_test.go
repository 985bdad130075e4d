package controller

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestConditions: what Get and List tell of a volume's health.
func TestConditions(t *testing.T) {
	stale := func(w *world, ids ...string) {
		for _, id := range ids {
			w.node(id, func(n *fakeNode) { n.stale = true })
		}
	}
	tests := []struct {
		name   string
		setup  func(*world)
		want   []string // type/reason of the conditions that are true
		saying string
	}{
		{"well", func(*world) {}, nil, ""},
		{"a replica's node away", func(w *world) { stale(w, "n1") }, []string{"Degraded/ReplicaNodesAway"}, "1 of 2 in-sync replicas are on nodes that are away: n1."},
		{"all replicas' nodes away", func(w *world) { stale(w, "n0", "n1") }, []string{"Faulty/ReplicaNodesAway"}, "n0, n1"},
		{"the last in-sync replica's node away", func(w *world) {
			w.edit(v1, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated })
			stale(w, "n0")
		}, []string{"Faulty/ReplicaNodesAway"}, "n0"},
		{"an outdated replica's node away is the mirror's news", func(w *world) {
			w.edit(v1, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated })
			stale(w, "n1")
		}, nil, ""},
		{"held by a live node", func(w *world) {
			w.edit(v1, heldBy("n2"))
			stale(w, "n1")
		}, nil, ""},
		{"held by a dead node", func(w *world) {
			w.edit(v1, heldBy("n2"))
			stale(w, "n2")
		}, []string{"Degraded/HolderAway"}, "Node n2 holds"},
		{"what the mirror said stays", func(w *world) {
			w.edit(v1, func(v *volume.Volume) {
				v.SetCondition(volume.Condition{Type: volume.ConditionDegraded, Status: true, Reason: "ReplicaOutdated", Message: "said by the mirror"})
			})
			stale(w, "n1")
		}, []string{"Degraded/ReplicaOutdated"}, "said by the mirror"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 3)
			mustCreate(t, w.fresh(), request("v", 2))
			tt.setup(w)
			before := w.volumes()
			v, err := w.fresh().Get(context.Background(), v1)
			wantErr(t, err, nil)
			conditions := v.Status.Conditions
			var got []string
			text := ""
			for _, c := range conditions {
				if c.Status {
					got = append(got, string(c.Type)+"/"+c.Reason)
					text += c.Message
				}
			}
			if !reflect.DeepEqual(got, tt.want) || !strings.Contains(text, tt.saying) {
				t.Errorf("%v (%s), want %v", got, text, tt.want)
			}
			listed, err := w.fresh().List(context.Background())
			if err != nil || !reflect.DeepEqual(listed[0].Status.Conditions, conditions) {
				t.Errorf("List tells %v, %v", listed, err)
			}
			if !reflect.DeepEqual(w.volumes(), before) {
				t.Error("the store was changed")
			}
		})
	}
}
