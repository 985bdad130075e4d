package admin

import (
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// After a promotion no note of what the others missed may be believed: the
// promoted replica was away itself, perhaps before they were.
func TestPromotionForgetsWhatOthersMissed(t *testing.T) {
	v := volume.Volume{Status: volume.Status{Replicas: []volume.Replica{
		{Node: "a", ID: "1", State: volume.Outdated, Change: 3},
		{Node: "b", ID: "2", State: volume.Outdated, Change: 5},
		{Node: "c", ID: "3", State: volume.InSync},
	}}}
	promote(&v, "a", "lost")
	for _, r := range v.Status.Replicas[1:] {
		if r.State != volume.Outdated || r.Change > v.Status.Replicas[0].Change || r.Change != 0 {
			t.Errorf("%s is %s with change %d", r.Node, r.State, r.Change)
		}
	}
}
