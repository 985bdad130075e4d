package main

import (
	"context"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// agents gives the controller its own words for what agents do: the controller
// knows neither the wire nor its client.
type agents struct{ clients *agent.Clients }

// CreateReplica implements controller.Agents.
func (a agents) CreateReplica(ctx context.Context, addr string, r controller.NewReplica) error {
	return a.clients.CreateReplica(ctx, addr, agent.CreateReplica(r))
}

// DeleteReplica implements controller.Agents.
func (a agents) DeleteReplica(ctx context.Context, addr string, id volume.ID, uid volume.UID) error {
	return a.clients.DeleteReplica(ctx, addr, id, uid)
}

// RetireReplica implements controller.Agents.
func (a agents) RetireReplica(ctx context.Context, addr string, o controller.RetireReplica) error {
	return a.clients.RetireReplica(ctx, addr, agent.RetireReplica(o))
}

// ListReplicas implements controller.Agents.
func (a agents) ListReplicas(ctx context.Context, addr string) ([]controller.HeldReplica, error) {
	replicas, err := a.clients.ListReplicas(ctx, addr)
	var out []controller.HeldReplica
	for _, r := range replicas {
		out = append(out, controller.HeldReplica{Volume: r.Volume, UID: r.UID, Pool: r.Pool})
	}
	return out, err
}
