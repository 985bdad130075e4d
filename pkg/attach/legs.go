package attach

import (
	"context"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// tracker is a remote replica's mirror.Tracker: through its node's agent, under
// the session that the leg is open as.
type tracker struct {
	agents  *agent.Clients
	addr    string
	session agent.Session
}

var _ mirror.Tracker = tracker{}

func (r *Replicas) tracker(addr string, q mirror.OpenRequest) tracker {
	return tracker{agents: r.Agents, addr: addr, session: agent.Session{UID: q.UID, Epoch: q.Epoch, Session: q.Session}}
}

// Regions implements mirror.Tracker.
func (t tracker) Regions(ctx context.Context, kind volume.MapKind, about string) (*bitmap.Set, error) {
	return t.agents.Regions(ctx, t.addr, t.session, kind, about)
}

// Rotate implements mirror.Tracker.
func (t tracker) Rotate(ctx context.Context, generation uint64) error {
	return t.agents.Rotate(ctx, t.addr, t.session, generation)
}

// DropPrevious implements mirror.Tracker.
func (t tracker) DropPrevious(ctx context.Context, generation uint64, away []volume.Absent) error {
	return t.agents.DropPrevious(ctx, t.addr, agent.DropIntent{Session: t.session, Generation: generation, Away: away})
}

// DropCopied implements mirror.Tracker.
func (t tracker) DropCopied(ctx context.Context, generation uint64, p volume.Progress) error {
	return t.agents.DropCopied(ctx, t.addr, agent.DropCopied{Session: t.session, Generation: generation, Progress: p})
}

// Hashes implements mirror.Tracker.
func (t tracker) Hashes(ctx context.Context, off, n int64) ([]byte, error) {
	return t.agents.Hashes(ctx, t.addr, agent.HashBlocks{Session: t.session, Off: off, Len: n})
}
