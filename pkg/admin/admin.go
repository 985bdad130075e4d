package admin

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Agents reaches the agents of the nodes, by address; agent.Clients has it.
type Agents interface {
	ListServing(ctx context.Context, addr string) ([]volume.Serving, error)
	ListRecords(ctx context.Context, addr string) ([]agent.Record, error)
}

// Admin asks and does what an administrator wants.
type Admin struct {
	Store  store.Store
	Agents Agents
	// AgentTimeout bounds one call to one agent; default 3 s.
	AgentTimeout time.Duration
}

func (a *Admin) agentTimeout() time.Duration {
	if a.AgentTimeout > 0 {
		return a.AgentTimeout
	}
	return 3 * time.Second
}

// Find returns the volume that is meant: by ID, by name, or by the beginning of
// one ID. ErrNotFound, or ErrInvalid when several begin so.
func (a *Admin) Find(ctx context.Context, what string) (volume.Volume, error) {
	all, err := a.Store.Volumes().List(ctx)
	if err != nil && len(all) == 0 {
		return volume.Volume{}, fmt.Errorf("list volumes: %w", err)
	}
	var begins []volume.Volume
	for _, v := range all {
		if v.Status.Phase == volume.PhaseDeleting {
			continue
		}
		if string(v.ID) == what || v.Spec.Name == what {
			return v, nil
		}
		if strings.HasPrefix(string(v.ID), what) && len(what) > len("hv-") {
			begins = append(begins, v)
		}
	}
	switch len(begins) {
	case 0:
		return volume.Volume{}, fmt.Errorf("volume %q: %w", what, volume.ErrNotFound)
	case 1:
		return begins[0], nil
	}
	return volume.Volume{}, volume.Invalid("VOLUME", what, "an ID, a name, or the beginning of one ID only")
}

// ask calls f for every node at once, and waits for all.
func (a *Admin) ask(ctx context.Context, nodes []volume.Node, f func(context.Context, int, volume.Node)) {
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, a.agentTimeout())
			defer cancel()
			f(ctx, i, n)
		})
	}
	wg.Wait()
}
