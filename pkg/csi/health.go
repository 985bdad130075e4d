package csi

import (
	"context"
	"fmt"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ControllerGetVolumeHealth tells what is wrong with a volume, from the store's
// view.
func (c *Controller) ControllerGetVolumeHealth(
	ctx context.Context, req *csipb.ControllerGetVolumeHealthRequest,
) (*csipb.ControllerGetVolumeHealthResponse, error) {
	v, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerGetVolumeHealthResponse{VolumeHealth: HealthOf(v)}, nil
}

// ControllerListVolumeHealth lists the volumes with which something is wrong, by
// pages.
func (c *Controller) ControllerListVolumeHealth(
	ctx context.Context, req *csipb.ControllerListVolumeHealthRequest,
) (*csipb.ControllerListVolumeHealthResponse, error) {
	page := pageRequest{max: req.GetMaxEntries(), token: req.GetStartingToken()}
	if err := page.check(); err != nil {
		return nil, err
	}
	all, err := c.volumes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	ill := all[:0]
	for _, v := range all {
		if len(HealthOf(v).GetHealthStatuses()) > 0 {
			ill = append(ill, v)
		}
	}
	volumes, next := page.cut(ill)
	resp := &csipb.ControllerListVolumeHealthResponse{NextToken: next}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, HealthOf(v))
	}
	return resp, nil
}

// HealthOf says what is wrong with a volume, from its object in the store: its
// conditions, and replicas that are not in sync.
func HealthOf(v volume.Volume) *csipb.VolumeHealth {
	h := NewHealth(v.ID)
	h.AddConditions(v.Status.Conditions)
	inSync := v.CountState(volume.InSync)
	switch {
	case v.Status.Phase != volume.PhaseReady:
	case inSync == 0:
		h.Add(csipb.VolumeHealthErrorType_INACCESSIBLE, "NoReplicaInSync", "No replica is in sync: "+replicaStates(v))
	case inSync < v.Spec.Params.Replicas && !h.has(csipb.VolumeHealthErrorType_DEGRADED):
		h.Add(csipb.VolumeHealthErrorType_DEGRADED, "ReplicasNotInSync",
			fmt.Sprintf("%d of %d replicas are in sync: %s", inSync, v.Spec.Params.Replicas, replicaStates(v)))
	}
	return h.Message()
}

func replicaStates(v volume.Volume) string {
	var states []string
	for _, r := range v.Status.Replicas {
		state := fmt.Sprintf("%s %s", r.Node, r.State)
		if r.Reason != "" {
			state += " (" + r.Reason + ")"
		}
		states = append(states, state)
	}
	return strings.Join(states, ", ")
}

// Health collects what is wrong with a volume; each pair of status and reason is
// reported once, as the specification demands.
type Health struct{ message *csipb.VolumeHealth }

// NewHealth starts with nothing wrong.
func NewHealth(id volume.ID) *Health {
	return &Health{message: &csipb.VolumeHealth{VolumeId: string(id)}}
}

// Add reports one thing.
func (h *Health) Add(t csipb.VolumeHealthErrorType, reason, message string) {
	for _, e := range h.message.HealthStatuses {
		if e.Status == t && e.Reason == reason {
			return
		}
	}
	h.message.HealthStatuses = append(h.message.HealthStatuses, &csipb.VolumeHealth_VolumeHealthEntry{Status: t, Reason: reason, Message: message})
}

// AddConditions reports the conditions that hold.
func (h *Health) AddConditions(conditions []volume.Condition) {
	for _, c := range conditions {
		if !c.Status {
			continue
		}
		t := csipb.VolumeHealthErrorType_DEGRADED // Degraded, WritesPaused
		if c.Type == volume.ConditionFaulty {
			t = csipb.VolumeHealthErrorType_INACCESSIBLE
			if strings.HasPrefix(c.Reason, volume.ReasonDataLoss) {
				t = csipb.VolumeHealthErrorType_DATA_LOSS
			}
		}
		reason := c.Reason
		if reason == "" {
			reason = string(c.Type)
		}
		h.Add(t, reason, c.Message)
	}
}

func (h *Health) has(t csipb.VolumeHealthErrorType) bool {
	for _, e := range h.message.HealthStatuses {
		if e.Status == t {
			return true
		}
	}
	return false
}

// Message returns what was collected.
func (h *Health) Message() *csipb.VolumeHealth { return h.message }
