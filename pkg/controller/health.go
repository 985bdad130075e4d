package controller

import (
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Reasons of the conditions that the controller adds.
const (
	// ReasonHolderAway: the node that holds the volume no longer renews its lease.
	ReasonHolderAway = "HolderAway"
	// ReasonNodesAway: nodes of in-sync replicas are away.
	ReasonNodesAway = "ReplicaNodesAway"
)

// addConditions adds to a volume without a live holder what can be seen from
// here. The conditions of a volume that is held are its mirror's, and what a
// mirror has said stays. Nothing is written to the store.
func (c *Controller) addConditions(v *volume.Volume) {
	h := v.Status.Holder
	if h != nil && c.opt.Liveness.Fresh(h.Node) {
		return
	}
	var away []string
	for _, r := range v.Status.Replicas {
		if r.State == volume.InSync && !c.opt.Liveness.Fresh(r.Node) {
			away = append(away, string(r.Node))
		}
	}
	inSync := v.CountState(volume.InSync)
	switch {
	case len(away) > 0 && len(away) == inSync:
		c.addCondition(v, volume.Condition{Type: volume.ConditionFaulty, Reason: ReasonNodesAway,
			Message: fmt.Sprintf("No in-sync replica can be reached: the nodes of all %d are away: %s.", inSync, strings.Join(away, ", "))})
	case len(away) > 0:
		c.addCondition(v, volume.Condition{Type: volume.ConditionDegraded, Reason: ReasonNodesAway,
			Message: fmt.Sprintf("%d of %d in-sync replicas are on nodes that are away: %s.", len(away), inSync, strings.Join(away, ", "))})
	case h != nil:
		c.addCondition(v, volume.Condition{Type: volume.ConditionDegraded, Reason: ReasonHolderAway,
			Message: fmt.Sprintf("Node %s holds the volume and is away: its lease is stale. Another node can take the volume.", h.Node)})
	}
}

func (c *Controller) addCondition(v *volume.Volume, add volume.Condition) {
	if has, ok := v.Condition(add.Type); ok && has.Status {
		return
	}
	add.Status, add.Since = true, c.opt.Now().UTC()
	v.SetCondition(add)
}
