package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Report is the state of everything, as the store and the nodes tell it. Its JSON
// form is what `-o json` prints. Sizes are in bytes.
type Report struct {
	Volumes []VolumeReport `json:"volumes"`
	Nodes   []NodeReport   `json:"nodes"`
}

// Health sums a volume up in one word.
type Health string

// The words, from worst to best.
const (
	Faulty    Health = "Faulty"    // it can't be served, or must not be trusted
	Degraded  Health = "Degraded"  // fewer replicas in sync than wanted, and nothing is being copied
	Resyncing Health = "Resyncing" // fewer replicas in sync than wanted; they are being copied
	Moving    Health = "Moving"    // replicas are to be elsewhere, or are not cleaned up yet
	Healthy   Health = "Healthy"
	Deleting  Health = "Deleting"
	Creating  Health = "Creating"
)

// VolumeReport is one volume.
type VolumeReport struct {
	ID             volume.ID          `json:"id"`
	Name           string             `json:"name"`
	UID            volume.UID         `json:"uid"`
	Health         Health             `json:"health"`
	Phase          volume.Phase       `json:"phase"`
	SizeBytes      int64              `json:"sizeBytes"`
	WantedBytes    int64              `json:"wantedBytes"`
	WantedReplicas int                `json:"wantedReplicas"`
	Epoch          volume.Epoch       `json:"epoch"`
	Clean          bool               `json:"clean"`
	Holder         *volume.Holder     `json:"holder,omitempty"`
	Params         volume.Params      `json:"params"`
	Format         volume.Format      `json:"format"`
	Replicas       []ReplicaReport    `json:"replicas"`
	Retired        []volume.Retired   `json:"retired,omitempty"`
	Conditions     []volume.Condition `json:"conditions,omitempty"`
}

// ReplicaReport is one replica, or a place that is to get one.
type ReplicaReport struct {
	Node   volume.NodeID       `json:"node"`
	Pool   string              `json:"pool"`
	State  volume.ReplicaState `json:"state"` // "" while it is being made
	Reason string              `json:"reason,omitempty"`
	Since  time.Time           `json:"since"`
	// Wanted: it is to stay. One that isn't goes when the wanted ones are in sync.
	Wanted bool    `json:"wanted"`
	Resync *Resync `json:"resync,omitempty"` // runs now
}

// Resync is how far a replica is, of what it may lack; 0 of 0 while that is being
// found out.
type Resync struct {
	DoneBytes  int64 `json:"doneBytes"`
	TotalBytes int64 `json:"totalBytes"`
}

// Percent is how much is done, 0 to 100; 100 only when all is.
func (r *Resync) Percent() int {
	switch {
	case r.TotalBytes <= 0:
		return 0
	case r.DoneBytes >= r.TotalBytes:
		return 100
	}
	return int(float64(r.DoneBytes) / float64(r.TotalBytes) * 100)
}

// NodeReport is one node.
type NodeReport struct {
	ID        volume.NodeID     `json:"id"`
	Answers   bool              `json:"answers"` // its agent did, just now
	Error     string            `json:"error,omitempty"`
	Leaving   bool              `json:"leaving"`
	Evicting  bool              `json:"evicting"`
	Topology  map[string]string `json:"topology"`
	Pools     []volume.Pool     `json:"pools"`
	Replicas  int               `json:"replicas"`  // listed there by volumes
	Serving   int               `json:"serving"`   // volumes that it holds
	AgentAddr string            `json:"agentAddr"` // host:port
}

// Status reports on everything. Nodes that don't answer are no error.
func (a *Admin) Status(ctx context.Context) (Report, error) {
	volumes, err := a.Store.Volumes().List(ctx)
	if err != nil && len(volumes) == 0 {
		return Report{}, fmt.Errorf("list volumes: %w", err)
	}
	nodes, nodesErr := a.Store.Nodes().List(ctx)
	if nodesErr != nil && len(nodes) == 0 {
		return Report{}, fmt.Errorf("list nodes: %w", nodesErr)
	}
	r := Report{Volumes: []VolumeReport{}, Nodes: make([]NodeReport, len(nodes))}
	served := make([][]volume.Serving, len(nodes))
	a.ask(ctx, nodes, func(ctx context.Context, i int, n volume.Node) {
		serving, err := a.Agents.ListServing(ctx, n.AgentAddr)
		served[i] = serving
		r.Nodes[i] = nodeReport(&n, volumes)
		r.Nodes[i].Answers, r.Nodes[i].Serving = err == nil, len(serving)
		if err != nil {
			r.Nodes[i].Error = err.Error()
		}
	})
	for i := range volumes {
		r.Volumes = append(r.Volumes, volumeReport(&volumes[i], served))
	}
	return r, nil
}

// Describe reports on one volume.
func (a *Admin) Describe(ctx context.Context, what string) (VolumeReport, error) {
	v, err := a.Find(ctx, what)
	if err != nil {
		return VolumeReport{}, err
	}
	var served [][]volume.Serving
	if h := v.Status.Holder; h != nil {
		if n, err := a.Store.Nodes().Get(ctx, h.Node); err == nil {
			ctx, cancel := context.WithTimeout(ctx, a.agentTimeout())
			defer cancel()
			if serving, err := a.Agents.ListServing(ctx, n.AgentAddr); err == nil {
				served = append(served, serving)
			}
		}
	}
	return volumeReport(&v, served), nil
}

func nodeReport(n *volume.Node, volumes []volume.Volume) NodeReport {
	r := NodeReport{ID: n.ID, Leaving: n.Leaving, Evicting: n.Evicting, Topology: n.Topology, Pools: n.Pools, AgentAddr: n.AgentAddr}
	for i := range volumes {
		if volumes[i].ReplicaOn(n.ID) >= 0 {
			r.Replicas++
		}
	}
	return r
}

func volumeReport(v *volume.Volume, served [][]volume.Serving) VolumeReport {
	r := VolumeReport{
		ID: v.ID, Name: v.Spec.Name, UID: v.UID, Phase: v.Status.Phase, SizeBytes: v.Status.SizeBytes, WantedBytes: v.Spec.SizeBytes,
		WantedReplicas: v.Spec.WantedReplicas(), Epoch: v.Status.Epoch, Clean: v.Status.Clean, Holder: v.Status.Holder,
		Params: v.Spec.Params, Format: v.Status.Format, Retired: v.Status.Retired,
	}
	for _, c := range v.Status.Conditions {
		if c.Status {
			r.Conditions = append(r.Conditions, c)
		}
	}
	for _, m := range v.Status.Replicas {
		r.Replicas = append(r.Replicas, ReplicaReport{
			Node: m.Node, Pool: m.Pool, State: m.State, Reason: m.Reason, Since: m.Since,
			Wanted: len(v.Spec.Places) == 0 || v.PlaceOn(m.Node) >= 0, Resync: resyncOf(v, m.Node, served),
		})
	}
	for _, p := range v.Spec.Places {
		if v.ReplicaOn(p.Node) < 0 {
			r.Replicas = append(r.Replicas, ReplicaReport{Node: p.Node, Pool: p.Pool, Reason: "it is being made", Wanted: true})
		}
	}
	r.Health = healthOf(v, r.Replicas)
	return r
}

// resyncOf is what the volume's holder tells of the replica; nil when it is not
// being copied. What another epoch's holder tells is of no interest.
func resyncOf(v *volume.Volume, node volume.NodeID, served [][]volume.Serving) *Resync {
	for _, serving := range served {
		for _, s := range serving {
			if s.UID != v.UID || s.Epoch != v.Status.Epoch {
				continue
			}
			for _, m := range s.Replicas {
				if m.Node == node && m.Resyncing {
					return &Resync{DoneBytes: m.DoneBytes, TotalBytes: m.TotalBytes}
				}
			}
		}
	}
	return nil
}

func healthOf(v *volume.Volume, replicas []ReplicaReport) Health {
	switch v.Status.Phase {
	case volume.PhaseCreating:
		return Creating
	case volume.PhaseDeleting:
		return Deleting
	case volume.PhaseReady:
	}
	if c, ok := v.Condition(volume.ConditionFaulty); ok && c.Status {
		return Faulty
	}
	inSync, resyncing := 0, false
	for _, m := range replicas {
		if m.State == volume.InSync && m.Wanted {
			inSync++
		}
		resyncing = resyncing || m.Resync != nil
	}
	switch {
	case v.CountState(volume.InSync) == 0:
		return Faulty
	case resyncing:
		return Resyncing
	case inSync < v.Spec.WantedReplicas():
		return Degraded
	case len(v.Status.Retired) > 0, !v.Settled():
		return Moving
	}
	return Healthy
}
