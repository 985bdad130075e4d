package controller

import (
	"context"
	"errors"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// placeAll brings the places of all volumes up to date.
func (r *reconciler) placeAll(ctx context.Context) error {
	cl, err := r.c.cluster(ctx)
	if err != nil {
		return err
	}
	now := r.c.opt.Now()
	for at, no := range r.refused {
		if now.After(no.until) {
			delete(r.refused, at)
			continue
		}
		cl.Refused[at] = no.why
	}
	r.observeAway(cl)
	var errs []error
	for _, v := range cl.Volumes {
		// One after the other, and each counted at once: what one volume takes is not
		// given to the next.
		now, err := r.place(ctx, v, cl)
		errs = append(errs, err)
		for i := range cl.Volumes {
			if cl.Volumes[i].ID == now.ID {
				cl.Volumes[i] = now
			}
		}
	}
	return errors.Join(errs...)
}

// observeAway notes since when nodes are away, by this process's clock. A
// controller that starts anew begins anew.
func (r *reconciler) observeAway(cl placement.Cluster) {
	now := r.c.opt.Now()
	for i := range cl.Nodes {
		id := cl.Nodes[i].ID
		if r.c.awayReason(&cl.Nodes[i]) == "" {
			delete(r.awaySince, id)
		} else if _, known := r.awaySince[id]; !known {
			r.awaySince[id] = now
		}
	}
}

// leaving are the nodes that replicas must leave: those being evicted, and those
// that stay away. When half of the nodes or more are away, it is the network, or
// this controller, and nothing is replaced.
func (r *reconciler) leaving(cl placement.Cluster) unfit {
	leave := unfit{nodes: map[volume.NodeID]string{}, gone: r.gone}
	now := r.c.opt.Now()
	many := 2*len(r.awaySince) >= len(cl.Nodes)
	for i := range cl.Nodes {
		id := cl.Nodes[i].ID
		since, away := r.awaySince[id]
		switch {
		case cl.Nodes[i].Evicting:
			leave.nodes[id] = "is being evicted"
		case away && !many && now.Sub(since) >= r.c.opt.ReplaceAfter:
			leave.nodes[id] = "stays away"
		}
	}
	return leave
}

// listed says whether the volume knows of a replica of its on the node, or has
// just ordered or dismissed one.
func listed(v *volume.Volume, node volume.NodeID) bool {
	return v.ReplicaOn(node) >= 0 || v.PlaceOn(node) >= 0 || v.RetiredOn(node)
}
