package mirror

import (
	"context"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// That data was lost stays said, whoever opens the volume, and however it is
// closed; other faults are over with the next opening.
func TestDataLossOutlivesOpenings(t *testing.T) {
	for reason, stays := range map[string]bool{volume.ReasonDataLoss + "Blank": true, "Stopped": false} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t, mib, "a", "b")
			m := w.open("a")
			fault := volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: reason, Message: "as found"}
			if err := m.Update(context.Background(), func(v *volume.Volume) { v.SetCondition(fault) }); err != nil {
				t.Fatal(err)
			}
			w.close(m)
			m = w.open("b")
			v := w.volume()
			if got, _ := v.Condition(volume.ConditionFaulty); (got == fault) != stays {
				t.Errorf("opened again: %+v", got)
			}
			for _, r := range w.reps { // nobody is left to serve: the mirror stops by itself
				r.kill()
			}
			<-m.Stopped()
			w.close(m)
			v = w.volume()
			if got, _ := v.Condition(volume.ConditionFaulty); !got.Status || (got == fault) != stays || v.Status.Holder != nil {
				t.Errorf("stopped: %+v", got)
			}
		})
	}
}
