package core

import (
	"slices"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestGivenUpOpeningKeepsIncarnations: an opening that reached a replica that has
// forgotten, and then gave up, leaves the store's word of who has not, for the next
// one to judge by.
func TestGivenUpOpeningKeepsIncarnations(t *testing.T) {
	m, err := New(Config{Legs: make([]LegConfig, 2), Patience: 10, OpPatience: 10, Reopen: 10, CopyBytes: 1, RegionBytes: 1, Settle: 10, Corrections: 1})
	if err != nil {
		t.Fatal(err)
	}
	noted := []volume.Incarnation{"a", "b"}
	m.Start()
	m.TakeDone(OK, Taken{
		States: []volume.ReplicaState{volume.InSync, volume.InSync}, Reasons: make([]string, 2), Changes: make([]uint64, 2), Incarnations: noted, Size: 1,
	})
	m.Opened(0, 1, Opening{Result: OK, Incarnation: "restarted"})
	m.LegLost(0, 1, "its connection broke")
	m.Opened(1, 1, Opening{Result: Lost, Reason: "out of reach"})
	actions := m.Take(nil)
	last := actions[len(actions)-1]
	if last.Kind != Swap || !last.Change.Release || !slices.Equal(last.Change.Incarnations, noted) {
		t.Errorf("the last action is %v with %+v, want a release that keeps %v", last.Kind, last.Change, noted)
	}
}
