package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Liveness judges the nodes' leases from a watch. A lease is fresh while its
// heartbeat was seen to change within the lease's time, by this observer's own
// monotonic clock; no two clocks are compared. A node that is leaving, or gone
// from the store, is not fresh at once. A node that this observer has not seen
// for a whole lease yet gets the benefit of the doubt: it may have been renewed
// just before this process started.
//
// What depends on it is when a volume may be taken over, not whether its data
// are safe: that is the epoch's business. While the store can't be read nothing
// is seen to change, so leases run out; nor can an epoch be taken then.
type Liveness struct {
	nodes Objects[volume.NodeID, volume.Node]
	log   *slog.Logger
	since time.Time // when observing began
	now   func() time.Time

	mu   sync.Mutex
	seen map[volume.NodeID]sighting // Guarded by mu.
}

// sighting is when a node's heartbeat was last seen to change.
type sighting struct {
	heartbeat uint64
	lease     time.Duration
	leaving   bool
	at        time.Time
}

// unknownLease is the time for which a node that was never seen counts as fresh.
const unknownLease = 10 * time.Second

// NewLiveness makes an observer; Run must be running for it to see anything.
func NewLiveness(nodes Objects[volume.NodeID, volume.Node], log *slog.Logger) *Liveness {
	return &Liveness{nodes: nodes, log: log, since: time.Now(), now: time.Now, seen: map[volume.NodeID]sighting{}}
}

// Run observes until ctx ends.
func (l *Liveness) Run(ctx context.Context) error {
	events, err := l.nodes.Watch(ctx, "")
	if err != nil {
		return err
	}
	for e := range events {
		l.observe(e)
	}
	return ctx.Err()
}

func (l *Liveness) observe(e Event[volume.NodeID, volume.Node]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch e.Kind {
	case Deleted:
		l.seen[e.Key] = sighting{leaving: true}
	case Put:
		n := e.Object
		old, known := l.seen[e.Key]
		s := sighting{heartbeat: n.Heartbeat, lease: n.Lease, leaving: n.Leaving, at: l.now()}
		if known && old.heartbeat == n.Heartbeat && old.leaving == n.Leaving {
			s.at = old.at // the same state again, after a broken watch
		}
		if known && old.leaving != n.Leaving {
			l.log.Info("node changed", "node", e.Key, "leaving", n.Leaving)
		}
		l.seen[e.Key] = s
	}
}

// Fresh says whether the node's lease is fresh.
func (l *Liveness) Fresh(node volume.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.seen[node]
	switch {
	case !ok:
		return l.now().Sub(l.since) < unknownLease
	case s.leaving:
		return false
	}
	return l.now().Sub(s.at) < s.lease
}
