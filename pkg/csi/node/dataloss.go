package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// dataLossError says that a formatted volume's device doesn't hold its
// filesystem. It is a type of its own, because ErrCorrupt alone may come from a
// replica's records and says nothing about the data.
type dataLossError struct {
	formatted string // the filesystem that was made
	found     host.Content
}

// Error implements error.
func (e *dataLossError) Error() string {
	return fmt.Sprintf("the volume was formatted as %s, but its device holds %s: its data is lost or was overwritten; it is not formatted again",
		e.formatted, e.found)
}

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (e *dataLossError) Unwrap() error { return volume.ErrCorrupt }

// reason is the condition's.
func (e *dataLossError) reason() string {
	if e.found.Blank {
		return volume.ReasonDataLoss + "Blank"
	}
	return volume.ReasonDataLoss + "Overwritten"
}

// alarmTimeout bounds the recording of lost data; the staging's own deadline may
// have passed.
const alarmTimeout = 10 * time.Second

// raiseDataLoss records in the store that a staging met lost data, while this
// node still holds the volume: there it outlives this process, and the controller
// shows it too. If the store can't be reached, the next staging tries again.
func (s *Service) raiseDataLoss(ctx context.Context, id volume.ID, cause error) {
	var lost *dataLossError
	if !errors.As(cause, &lost) {
		return
	}
	s.log.Error("a volume's data is lost", "volume", id, "error", lost)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), alarmTimeout)
	defer cancel()
	err := s.attacher.SetCondition(ctx, id, volume.Condition{
		Type: volume.ConditionFaulty, Status: true, Reason: lost.reason(), Message: "On node " + string(s.attacher.Node().ID) + ": " + lost.Error() + ".",
		Since: time.Now().UTC(),
	})
	if err != nil {
		s.log.Error("that a volume's data is lost could not be recorded", "volume", id, "error", err)
	}
}

// clearDataLoss takes back what an earlier staging recorded: this one found the
// data. v is as read before.
func (s *Service) clearDataLoss(ctx context.Context, v volume.Volume) error {
	if _, lost := v.LostData(); !lost {
		return nil
	}
	err := s.attacher.SetCondition(ctx, v.ID, volume.Condition{
		Type: volume.ConditionFaulty, Reason: "Staged", Message: "the volume's filesystem was found and mounted", Since: time.Now().UTC(),
	})
	if err != nil {
		return fmt.Errorf("record that the data of volume %s was found: %w", v.ID, err)
	}
	s.log.Info("a volume's data was found again", "volume", v.ID)
	return nil
}
