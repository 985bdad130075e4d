package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/placement"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Replicas are replaced, added and removed by changing the places where they are
// wanted (volume.Place), which is the controller's part of the object. Who holds
// the volume makes Status.Replicas follow, adding first and removing last. Each
// step is decided anew from what the store says: a controller may die at any
// moment, and two may do the same at once.

// unfit is what replicas must not stay where they are for.
type unfit struct {
	nodes map[volume.NodeID]string // that replicas must leave, and why
	gone  map[string]bool          // replicas, by ID, whose files have vanished
}

// wantPlaces returns the places that a volume should have, given the nodes that
// its replicas must leave and those whose replica is of no use any more; and what
// stands in the way of all of it, if anything.
//
// A place is given up only for another one. A replica that must leave and has
// nowhere to go stays; on a node that is away it is brought in sync when that
// returns. One that is of no use is then made anew where it was.
func wantPlaces(v *volume.Volume, cl placement.Cluster, leave unfit) (want []volume.Place, obstacle string) {
	var keep, leaving []volume.Place
	for _, p := range placesOf(v) {
		if _, must := leave.nodes[p.Node]; must || leave.useless(v, p) {
			leaving = append(leaving, p)
		} else {
			keep = append(keep, p)
		}
	}
	n := v.Spec.WantedReplicas()
	switch {
	case len(keep) == n:
		return keep, ""
	case len(keep) > n:
		return dropSurplus(v, keep, n), ""
	}
	added, obstacle := addPlaces(v, cl, keep, n-len(keep))
	want = append(keep, added...)
	for _, p := range leaving {
		if len(want) >= n {
			break
		}
		if leave.useless(v, p) && v.CountState(volume.InSync) > 0 {
			p.ID, p.Made = uuid.NewString(), false
		}
		want = append(want, p)
	}
	return want, obstacle
}

// useless says whether the place's replica failed or is not there any more. Made
// anew it has another ID, and is not meant any more.
func (u unfit) useless(v *volume.Volume, p volume.Place) bool {
	i := v.ReplicaOn(p.Node)
	return i >= 0 && v.Status.Replicas[i].ID == p.ID && (v.Status.Replicas[i].State == volume.Failed || u.gone[p.ID])
}

// placesOf are the volume's places; one made before there were any has them where
// its replicas are.
func placesOf(v *volume.Volume) []volume.Place {
	if len(v.Spec.Places) > 0 {
		return slices.Clone(v.Spec.Places)
	}
	var places []volume.Place
	for _, r := range v.Status.Replicas {
		places = append(places, volume.Place{Node: r.Node, Pool: r.Pool, ID: r.ID, Made: true})
	}
	return places
}

// dropSurplus keeps n places, those with in-sync replicas first.
func dropSurplus(v *volume.Volume, places []volume.Place, n int) []volume.Place {
	behind := func(p volume.Place) int {
		if i := v.ReplicaOn(p.Node); i >= 0 && v.Status.Replicas[i].State == volume.InSync {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(places, func(a, b volume.Place) int { return behind(a) - behind(b) })
	return places[:n]
}

// addPlaces chooses n more places beside those kept. A node that has, or may have,
// files of the volume gets no other replica before they are gone.
func addPlaces(v *volume.Volume, cl placement.Cluster, keep []volume.Place, n int) (added []volume.Place, obstacle string) {
	if n <= 0 {
		return nil, ""
	}
	if v.Spec.Params.Locality == volume.LocalityStrict { // Kubernetes does not let a volume's nodes change
		return nil, "the volume is bound to its nodes (locality strict)"
	}
	var kept []volume.NodeID
	for _, p := range keep {
		kept = append(kept, p.Node)
	}
	away := map[volume.NodeID]string{}
	for node, why := range cl.Away {
		away[node] = why
	}
	for _, r := range v.Status.Replicas {
		away[r.Node] = "has a replica of the volume"
	}
	for _, r := range v.Status.Retired {
		away[r.Node] = "has a retired replica of the volume"
	}
	cl.Away = away
	places, refused := placement.More(placement.Request{
		Cluster: cl, Params: v.Spec.Params, SizeBytes: max(v.Spec.SizeBytes, v.Status.SizeBytes),
	}, kept, n)
	for _, p := range places {
		added = append(added, volume.Place{Node: p.Node, Pool: p.Pool, ID: uuid.NewString()})
	}
	if len(added) < n {
		obstacle = fmt.Sprintf("no room for %d more replicas", n-len(added))
		for _, r := range refused {
			obstacle += fmt.Sprintf("; node %s %s", r.Node, r.Reason)
		}
	}
	return added, obstacle
}

// place brings one volume's places up to date, and makes and removes replicas as
// far as the nodes can be reached.
func (r *reconciler) place(ctx context.Context, v volume.Volume, cl placement.Cluster) (volume.Volume, error) {
	if v.Status.Phase != volume.PhaseReady || v.LoopOnly() {
		return v, nil
	}
	want, obstacle := wantPlaces(&v, cl, r.leaving(cl))
	r.noteObstacle(ctx, &v, obstacle)
	if !slices.Equal(want, placesOf(&v)) && len(want) > 0 {
		was := v.Spec.Places
		v.Spec.Places = want
		now, err := r.c.volumes.Update(ctx, v)
		if err != nil {
			return v, ignoreConflict(fmt.Errorf("record places of volume %s: %w", v.ID, err))
		}
		v = now
		r.c.log.InfoContext(ctx, "replicas are to be elsewhere", "volume", v.ID, "from", was, "to", want)
	}
	return v, errors.Join(r.makePlaces(ctx, v, cl), r.removeRetired(ctx, v))
}

// noteObstacle logs what stands in the way when it changes.
func (r *reconciler) noteObstacle(ctx context.Context, v *volume.Volume, obstacle string) {
	if r.obstacles[v.ID] == obstacle {
		return
	}
	if obstacle != "" {
		r.c.log.WarnContext(ctx, "a volume has fewer places than wanted", "volume", v.ID, "wanted", v.Spec.WantedReplicas(), "reason", obstacle)
	}
	r.obstacles[v.ID] = obstacle
}

// makePlaces makes the (empty) replicas of places that have none yet. A node that
// refuses loses the place.
func (r *reconciler) makePlaces(ctx context.Context, v volume.Volume, cl placement.Cluster) error {
	for i, p := range v.Spec.Places {
		if p.Made || cl.Away[p.Node] != "" || v.RetiredOn(p.Node) || v.ReplicaOn(p.Node) >= 0 {
			continue
		}
		n := slices.IndexFunc(cl.Nodes, func(n volume.Node) bool { return n.ID == p.Node })
		if n < 0 {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, r.c.opt.AgentTimeout)
		err := r.c.opt.Agents.CreateReplica(cctx, cl.Nodes[n].AgentAddr, NewReplica{
			Volume: v.ID, UID: v.UID, Pool: p.Pool, SizeBytes: max(v.Spec.SizeBytes, v.Status.SizeBytes), Epoch: v.Status.Epoch,
		})
		cancel()
		// One of another size was made by an earlier attempt: opening grows it.
		if err != nil && !errors.Is(err, volume.ErrExists) {
			if !unreachable(err) {
				r.refused[placement.Placement{Node: p.Node, Pool: p.Pool}] = refusal{why: err.Error(), until: r.c.opt.Now().Add(refusalTime)}
				v.Spec.Places = slices.Delete(slices.Clone(v.Spec.Places), i, i+1)
				_, uerr := r.c.volumes.Update(ctx, v)
				return errors.Join(fmt.Errorf("make a replica of volume %s on node %s: %w", v.ID, p.Node, err), ignoreConflict(uerr))
			}
			continue // away after all; the next pass will see
		}
		v.Spec.Places[i].Made = true
		now, err := r.c.volumes.Update(ctx, v)
		if err != nil {
			return ignoreConflict(fmt.Errorf("record a replica of volume %s: %w", v.ID, err))
		}
		v = now
		r.c.log.InfoContext(ctx, "replica made", "volume", v.ID, "node", p.Node, "pool", p.Pool)
	}
	return nil
}

// removeRetired removes the files of replicas that were taken off the volume. The
// epoch keeps an order that comes late from hitting a newer replica.
func (r *reconciler) removeRetired(ctx context.Context, v volume.Volume) error {
	if len(v.Status.Retired) == 0 {
		return nil
	}
	addrs, err := r.c.addresses(ctx)
	if err != nil {
		return err
	}
	var gone []volume.Retired
	var errs []error
	for _, old := range v.Status.Retired {
		addr, ok := addrs[old.Node]
		if !ok || v.ReplicaOn(old.Node) >= 0 {
			continue
		}
		err := r.c.retire(ctx, addr, RetireReplica{Volume: v.ID, UID: v.UID, Epoch: old.Epoch})
		if err != nil && !errors.Is(err, volume.ErrFenced) {
			if !unreachable(err) {
				errs = append(errs, fmt.Errorf("remove the retired replica of volume %s from node %s: %w", v.ID, old.Node, err))
			}
			continue
		}
		gone = append(gone, old)
	}
	if len(gone) == 0 {
		return errors.Join(errs...)
	}
	_, err = r.c.change(ctx, v.ID, v.UID, func(v *volume.Volume) error {
		v.Status.Retired = slices.DeleteFunc(v.Status.Retired, func(o volume.Retired) bool { return slices.Contains(gone, o) })
		return nil
	})
	if err == nil {
		r.c.log.InfoContext(ctx, "retired replicas removed", "volume", v.ID, "replicas", gone)
	}
	return errors.Join(append(errs, err)...)
}

func (c *Controller) retire(ctx context.Context, addr string, o RetireReplica) error {
	ctx, cancel := context.WithTimeout(ctx, c.opt.AgentTimeout)
	defer cancel()
	return c.opt.Agents.RetireReplica(ctx, addr, o)
}

// change re-reads, applies and swaps until it succeeds; ErrNotFound when the
// volume is gone, or was created anew.
func (c *Controller) change(ctx context.Context, id volume.ID, uid volume.UID, apply func(*volume.Volume) error) (volume.Volume, error) {
	for range maxAttempts {
		v, err := c.ready(ctx, id)
		if err != nil {
			return v, err
		}
		if uid != "" && v.UID != uid {
			return v, fmt.Errorf("volume %s was created anew: %w", id, volume.ErrNotFound)
		}
		if err := apply(&v); err != nil {
			return v, err
		}
		v, err = c.volumes.Update(ctx, v)
		if !errors.Is(err, volume.ErrConflict) {
			return v, err
		}
	}
	return volume.Volume{}, fmt.Errorf("change volume %s: others keep changing it: %w", id, volume.ErrPending)
}

// refusalTime is for how long a pool that refused a replica is not asked again.
const refusalTime = time.Minute

// refusal is a pool's.
type refusal struct {
	why   string
	until time.Time
}
