package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Rebuilt is what became of one volume.
type Rebuilt struct {
	Volume volume.ID    `json:"volume"`
	Name   string       `json:"name"`
	UID    volume.UID   `json:"uid"`
	Epoch  volume.Epoch `json:"epoch"`
	// InSync are the nodes whose replicas are the volume's content, Behind the others.
	InSync []volume.NodeID `json:"inSync"`
	Behind []volume.NodeID `json:"behind"`
	// Done: the store has it now. Else Why not.
	Done bool   `json:"done"`
	Why  string `json:"why,omitempty"`
}

// RebuildOptions for RebuildStore.
type RebuildOptions struct {
	// Force: also if the store has volumes (those that it knows best stay as they
	// are), and if nodes don't answer (their replicas count as Outdated).
	Force bool
	// DryRun: tell only.
	DryRun bool
}

// found is one replica that a node has.
type found struct {
	node volume.NodeID
	agent.Record
	kept *volume.Kept // nil when there is none
}

// RebuildStore makes the volumes' objects from what the replicas know: for a store
// that was lost, or that has gone back in time.
//
// The newest copy of a volume's object, by epoch and then by version, tells what
// it is and which replicas were in sync. Of those, only such count as have seen
// the highest epoch that any replica has: the others took no part in the last
// opening. All others are Outdated under another identity, so that they are copied
// anew as a whole. The epoch is the highest that anybody has seen; the next
// opening takes a higher one.
//
// What can't be seen: a replica that was given up within the last moment before
// the store was lost, of which no copy tells yet; and replicas of nodes that don't
// answer, which is why it refuses to go on without them.
func (a *Admin) RebuildStore(ctx context.Context, o RebuildOptions) ([]Rebuilt, error) {
	stored, err := a.Store.Volumes().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	if len(stored) > 0 && !o.Force {
		return nil, fmt.Errorf("the store has %d volumes; nothing was changed (--force: those that it knows best stay as they are): %w", len(stored), volume.ErrPrecondition)
	}
	replicas, silent, err := a.records(ctx)
	if err != nil {
		return nil, err
	}
	if len(silent) > 0 && !o.Force {
		return nil, fmt.Errorf("nodes don't answer, and their replicas may know more: %s (--force: go on without them): %w", strings.Join(silent, ", "), volume.ErrUnavailable)
	}
	var out []Rebuilt
	for _, uid := range slices.Sorted(maps.Keys(replicas)) {
		v, r := rebuild(uid, replicas[uid])
		if r.Why == "" {
			a.restore(ctx, v, &r, restoring{stored: stored, others: replicas, dry: o.DryRun})
		}
		out = append(out, r)
	}
	return out, nil
}

// records asks all nodes that the store has; they register by themselves.
func (a *Admin) records(ctx context.Context) (byUID map[volume.UID][]found, silent []string, err error) {
	nodes, err := a.Store.Nodes().List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	if len(nodes) == 0 {
		return nil, nil, fmt.Errorf("no node has registered with the store yet: %w", volume.ErrUnavailable)
	}
	answers := make([][]agent.Record, len(nodes))
	errs := make([]error, len(nodes))
	a.ask(ctx, nodes, func(ctx context.Context, i int, n volume.Node) {
		answers[i], errs[i] = a.Agents.ListRecords(ctx, n.AgentAddr)
	})
	byUID = map[volume.UID][]found{}
	for i, n := range nodes {
		if errs[i] != nil {
			silent = append(silent, string(n.ID))
		}
		for _, rec := range answers[i] {
			f := found{node: n.ID, Record: rec}
			var k volume.Kept
			if json.Unmarshal(rec.Object, &k) == nil && k.Volume.UID == rec.UID {
				f.kept = &k
			}
			byUID[rec.UID] = append(byUID[rec.UID], f)
		}
	}
	return byUID, silent, nil
}

// newest is the newest copy of the volume's object, or nil.
func newest(replicas []found) *volume.Kept {
	var best *volume.Kept
	for _, f := range replicas {
		if f.kept == nil {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(f.kept.Volume.Status.Epoch, best.Volume.Status.Epoch), cmp.Compare(f.kept.Version, best.Version)) > 0 {
			best = f.kept
		}
	}
	return best
}

// rebuild makes one volume's object.
func rebuild(uid volume.UID, replicas []found) (volume.Volume, Rebuilt) {
	r := Rebuilt{UID: uid}
	k := newest(replicas)
	if k == nil {
		r.Why = "no node has a copy of its object; its data can be recovered by hand"
		return volume.Volume{}, r
	}
	v := k.Volume.Clone()
	r.Volume, r.Name = v.ID, v.Spec.Name
	var seen volume.Epoch // by replicas
	for _, f := range replicas {
		seen = max(seen, f.Epoch)
	}
	// A copy with a higher epoch than any replica has seen tells of a decision that
	// was never presented to them, such as a promotion: it stands.
	decided := v.Status.Epoch > seen
	now := time.Now().UTC()
	for i := range v.Status.Replicas {
		m := &v.Status.Replicas[i]
		at := slices.IndexFunc(replicas, func(f found) bool { return f.node == m.Node })
		switch {
		case at >= 0 && replicas[at].Failure != "":
			m.State, m.Reason, m.Since = volume.Failed, replicas[at].Failure, now
		case at >= 0 && m.State == volume.InSync && (decided || replicas[at].Epoch == seen):
			r.InSync = append(r.InSync, m.Node)
			continue
		default:
			m.State, m.Reason, m.Since = volume.Outdated, "the store was made again from the replicas, and this one is not known to be in sync", now
		}
		r.Behind = append(r.Behind, m.Node)
		renew(&v, i, m.ID)
	}
	v.Version = 0
	v.Status.Epoch, v.Status.Holder, v.Status.Clean = max(v.Status.Epoch, seen), nil, false
	if c, ok := v.Condition(volume.ConditionFaulty); ok && c.Reason == volume.ReasonStoreBehind {
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Reason: "Rebuilt", Message: "the store was made again from the replicas", Since: now})
	}
	r.Epoch = v.Status.Epoch
	if len(r.InSync) == 0 {
		r.Why = fmt.Sprintf("no replica is known to be in sync; the highest epoch that a replica has seen is %d", seen)
	}
	return v, r
}

// restoring is what restore looks at besides the volume.
type restoring struct {
	stored []volume.Volume
	others map[volume.UID][]found
	dry    bool
}

// restore stores one volume's object unless the store, or another creation of the
// volume, knows better.
func (a *Admin) restore(ctx context.Context, v volume.Volume, r *Rebuilt, o restoring) {
	for uid, replicas := range o.others {
		if k := newest(replicas); uid != v.UID && k != nil && k.Volume.ID == v.ID && k.Version > newest(o.others[v.UID]).Version {
			r.Why = fmt.Sprintf("volume %s was deleted and created again since, as %s", v.ID, uid)
			return
		}
	}
	var err error
	for _, s := range o.stored {
		switch {
		case s.UID == v.UID && s.Status.Phase == volume.PhaseDeleting:
			r.Why = "it was deleted"
			return
		case s.ID == v.ID && s.UID != v.UID:
			r.Why = fmt.Sprintf("the store has another creation of it, %s", s.UID)
			return
		case s.ID == v.ID && s.Status.Epoch >= v.Status.Epoch && !behind(&s):
			r.Why = "the store knows as much"
			return
		case s.ID == v.ID:
			v.Version = s.Version
			v.Status.Epoch = max(v.Status.Epoch, s.Status.Epoch)
		}
	}
	r.Epoch = v.Status.Epoch
	switch {
	case o.dry:
		r.Why = "dry run"
		return
	case v.Version != 0:
		_, err = a.Store.Volumes().Update(ctx, v)
	default:
		_, err = a.Store.Volumes().Create(ctx, v)
	}
	r.Done = err == nil
	switch {
	case errors.Is(err, volume.ErrConflict), errors.Is(err, volume.ErrExists):
		r.Why = "somebody else changed it meanwhile: repeat the command"
	case err != nil:
		r.Why = err.Error()
	}
}

// behind says whether a replica was found to know more than the store.
func behind(v *volume.Volume) bool {
	c, ok := v.Condition(volume.ConditionFaulty)
	return ok && c.Status && c.Reason == volume.ReasonStoreBehind
}
