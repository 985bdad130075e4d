package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// maxAttempts bounds how often a swap is tried again after a conflict.
const maxAttempts = 16

// change finds a volume, applies and swaps until that succeeds.
func (a *Admin) change(ctx context.Context, what string, apply func(*volume.Volume) error) (volume.Volume, error) {
	for range maxAttempts {
		v, err := a.Find(ctx, what)
		if err != nil {
			return v, err
		}
		if v.Status.Phase != volume.PhaseReady {
			return v, fmt.Errorf("volume %s is %s: %w", v.ID, v.Status.Phase, volume.ErrPrecondition)
		}
		if err := apply(&v); err != nil {
			return v, err
		}
		v, err = a.Store.Volumes().Update(ctx, v)
		if !errors.Is(err, volume.ErrConflict) {
			return v, err
		}
	}
	return volume.Volume{}, fmt.Errorf("change volume %s: others keep changing it: %w", what, volume.ErrPending)
}

// SetReplicas changes how many replicas a volume is to have.
func (a *Admin) SetReplicas(ctx context.Context, what string, n int) (volume.Volume, error) {
	return a.change(ctx, what, func(v *volume.Volume) error { return controller.WantReplicas(v, n) })
}

// Evict has all replicas leave a node, or, with none to do so, lets the node have
// replicas again. It returns what is still there; the controller does the rest.
func (a *Admin) Evict(ctx context.Context, id volume.NodeID, want Eviction) ([]volume.ID, error) {
	for range maxAttempts {
		n, err := a.Store.Nodes().Get(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", id, err)
		}
		if evicting := want == EvictNode; n.Evicting != evicting {
			n.Evicting = evicting
			if _, err = a.Store.Nodes().Update(ctx, n); errors.Is(err, volume.ErrConflict) {
				continue // its heartbeat
			}
		}
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", id, err)
		}
		return a.replicasOn(ctx, id)
	}
	return nil, fmt.Errorf("node %s: others keep changing it: %w", id, volume.ErrPending)
}

// Eviction is what Evict is to do.
type Eviction string

// What Evict does.
const (
	EvictNode      Eviction = "evict"
	CancelEviction Eviction = "cancel"
)

func (a *Admin) replicasOn(ctx context.Context, id volume.NodeID) ([]volume.ID, error) {
	all, err := a.Store.Volumes().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var there []volume.ID
	for i := range all {
		if v := &all[i]; v.ReplicaOn(id) >= 0 || v.RetiredOn(id) {
			there = append(there, v.ID)
		}
	}
	return there, nil
}

// Promotion says what promoting a replica means.
type Promotion struct {
	Volume volume.ID     `json:"volume"`
	Node   volume.NodeID `json:"node"`
	// Loss is what is lost, in a sentence.
	Loss string `json:"loss"`
	Done bool   `json:"done"`
}

// Promotion tells what would be lost if the replica on the node were declared the
// volume's content. ErrPrecondition when it is not possible, or not needed.
func (a *Admin) Promotion(ctx context.Context, what string, node volume.NodeID) (Promotion, error) {
	v, err := a.Find(ctx, what)
	if err != nil {
		return Promotion{}, err
	}
	if err := a.mayPromote(ctx, &v, node); err != nil {
		return Promotion{}, err
	}
	return Promotion{Volume: v.ID, Node: node, Loss: lossOf(&v, node)}, nil
}

// Promote declares an Outdated replica the volume's content: a new epoch fences
// whoever holds the volume, and all other replicas are made anew from this one,
// whatever they know of it, for they get another identity.
func (a *Admin) Promote(ctx context.Context, what string, node volume.NodeID) (Promotion, error) {
	p := Promotion{Node: node}
	v, err := a.change(ctx, what, func(v *volume.Volume) error {
		if err := a.mayPromote(ctx, v, node); err != nil {
			return err
		}
		p.Loss = lossOf(v, node)
		promote(v, node, p.Loss)
		return nil
	})
	p.Volume, p.Done = v.ID, err == nil
	return p, err
}

func (a *Admin) mayPromote(ctx context.Context, v *volume.Volume, node volume.NodeID) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("volume %s: %s: %w", v.ID, fmt.Sprintf(format, args...), volume.ErrPrecondition)
	}
	i := v.ReplicaOn(node)
	switch {
	case i < 0:
		return refuse("it has no replica on node %s", node)
	case v.Status.Replicas[i].State == volume.InSync:
		return refuse("its replica on node %s is in sync; it is used as soon as its node is there", node)
	case v.Status.Replicas[i].State == volume.Failed:
		return refuse("its replica on node %s failed and is never trusted again; what can be read of it must be read by hand", node)
	}
	for _, r := range v.Status.Replicas {
		if r.State == volume.InSync && a.answers(ctx, r.Node) {
			return refuse("its replica on node %s is in sync, and that node answers: nothing has to be lost", r.Node)
		}
	}
	return nil
}

func (a *Admin) answers(ctx context.Context, node volume.NodeID) bool {
	n, err := a.Store.Nodes().Get(ctx, node)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, a.agentTimeout())
	defer cancel()
	_, err = a.Agents.ListServing(ctx, n.AgentAddr)
	return err == nil
}

// lossOf is what a promotion loses.
func lossOf(v *volume.Volume, node volume.NodeID) string {
	r := v.Status.Replicas[v.ReplicaOn(node)]
	var better []string
	for _, o := range v.Status.Replicas {
		if o.State == volume.InSync {
			better = append(better, string(o.Node))
		}
	}
	loss := fmt.Sprintf("The replica on node %s has been %s", node, r.State)
	if !r.Since.IsZero() {
		loss += " since " + r.Since.UTC().Format(time.RFC3339)
	}
	loss += ": what was written since then, and perhaps was flushed and relied upon, is lost for good"
	if r.State == volume.Rebuilding {
		loss += ", and because it was being copied to, its content is a mixture of old and new that no filesystem may survive"
	}
	if len(better) > 0 {
		return loss + fmt.Sprintf("; it is on %s, and will be overwritten there.", strings.Join(better, ", "))
	}
	return loss + "."
}

// promote changes the object.
func promote(v *volume.Volume, node volume.NodeID, loss string) {
	now := time.Now().UTC()
	v.Status.Epoch++
	v.Status.Holder, v.Status.Clean = nil, false
	var last uint64 // change of membership
	for _, r := range v.Status.Replicas {
		last = max(last, r.Change)
	}
	for i := range v.Status.Replicas {
		r := &v.Status.Replicas[i]
		was := r.ID
		if r.Node == node {
			r.State, r.Reason, r.Since, r.Change = volume.InSync, "", now, last+1
			continue
		}
		if r.State != volume.Failed {
			r.State, r.Reason, r.Since = volume.Outdated, fmt.Sprintf("the replica on node %s was promoted by an administrator", node), now
		}
		renew(v, i, was)
	}
	v.SetCondition(volume.Condition{Type: volume.ConditionDataLossAccepted, Status: true, Reason: "Promoted", Message: loss, Since: now})
	if _, had := v.Condition(volume.ConditionFaulty); had {
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Reason: "Promoted", Message: "a replica was promoted by an administrator", Since: now})
	}
}

// renew gives a replica another identity, and its place with it: what others have
// noted of it counts no more. Nor is anybody's change of membership before its own.
func renew(v *volume.Volume, i int, was string) {
	r := &v.Status.Replicas[i]
	r.ID, r.Change = uuid.NewString(), 0
	if p := slices.IndexFunc(v.Spec.Places, func(p volume.Place) bool { return p.Node == r.Node && p.ID == was }); p >= 0 {
		v.Spec.Places[p].ID = r.ID
	}
}
