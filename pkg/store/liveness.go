package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// How Liveness keeps in contact with the store.
const (
	// contactEvery: when nothing was heard for this long, the store is asked.
	contactEvery = 500 * time.Millisecond
	// contactGap: a longer silence counts as no contact at all. It covers a few
	// asks; it is shorter than any useful lease.
	contactGap = 5 * contactEvery
	// contactTimeout bounds one ask.
	contactTimeout = 4 * contactEvery
	// unknownLease is the time for which a node that was never seen counts as
	// fresh, and the lease of a node that states none.
	unknownLease = 10 * time.Second
)

// Liveness judges the nodes' leases from a watch. A lease is fresh while its
// heartbeat was seen to change within the lease's time, by this observer's own
// monotonic clock; no two clocks are compared. A node that is leaving, or gone
// from the store, is not fresh at once. A node that this observer has not seen
// for a whole lease yet gets the benefit of the doubt: it may have been renewed
// just before this process started.
//
// What must be prevented: that live nodes are called dead because the store, or
// this observer, was away. Nobody can renew a lease in a store that is down, nor
// does a stopped process see renewals; when either comes back, all leases would
// seem to have run out at once. So time passes for leases only while the
// observer is in contact with the store: silences longer than contactGap don't
// count, and when watches bring no news the store is asked. A node is called
// dead when it could have renewed its lease for the lease's whole time, as far
// as this observer can tell, and did not.
//
// What depends on it is when a volume may be taken over, not whether its data
// are safe: that is the epoch's business.
//
// Concurrency: safe for concurrent use. Run is two goroutines, one for the
// watch and one that asks.
type Liveness struct {
	nodes Objects[volume.NodeID, volume.Node]
	log   *slog.Logger

	mu       sync.Mutex
	seen     map[volume.NodeID]*sighting // Guarded by mu. Deleted nodes stay, as not fresh.
	contact  time.Time                   // last sign of life of the store; zero before the first. Guarded by mu.
	observed time.Duration               // time spent in contact; what leases are measured by. Guarded by mu.
}

// sighting is what was last seen of a node.
type sighting struct {
	heartbeat uint64        // by the watch
	asked     uint64        // heartbeat by the last ask that saw another one than the watch
	lease     time.Duration // > 0
	ended     bool          // leaving, or deleted
	at        time.Duration // observed time when the heartbeat was last seen to change
	fresh     bool          // the last judgement
}

// NewLiveness makes an observer; Run must be running for it to see anything.
func NewLiveness(nodes Objects[volume.NodeID, volume.Node], log *slog.Logger) *Liveness {
	return &Liveness{nodes: nodes, log: log, seen: map[volume.NodeID]*sighting{}}
}

// Run observes until ctx ends or the store is closed.
func (l *Liveness) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	events, err := l.nodes.Watch(ctx, "")
	if err != nil {
		return err
	}
	g.Go(func() error {
		for e := range events {
			l.observe(e)
		}
		if ctx.Err() == nil {
			return volume.ErrClosed // the store ended the watch
		}
		return ctx.Err()
	})
	g.Go(func() error { return l.keepContact(ctx) })
	return g.Wait()
}

// Fresh says whether the node's lease is fresh.
func (l *Liveness) Fresh(node volume.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.seen[node]; s != nil {
		return l.freshLocked(s)
	}
	return l.observed < unknownLease
}

func (l *Liveness) freshLocked(s *sighting) bool {
	return !s.ended && l.observed-s.at < s.lease
}

// keepContact asks the store whenever the watch is silent.
func (l *Liveness) keepContact(ctx context.Context) error {
	tick := time.NewTicker(contactEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		l.mu.Lock()
		silent := time.Since(l.contact) >= contactEvery
		l.mu.Unlock()
		if silent {
			l.ask(ctx)
		}
	}
}

// ask lists the nodes. Its answer is a sign of life as of its beginning: what
// happened after that it may have missed. A heartbeat that the watch has not
// told of yet renews the lease too, should the watch be stuck.
func (l *Liveness) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, contactTimeout)
	defer cancel()
	began := time.Now()
	nodes, err := l.nodes.List(ctx)
	if err != nil && len(nodes) == 0 {
		return // no contact: time stands still; requests that matter report the error
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range nodes {
		if s := l.seen[n.ID]; s != nil && n.Heartbeat != s.heartbeat && n.Heartbeat != s.asked {
			s.asked, s.at = n.Heartbeat, l.observed
		}
	}
	l.contactLocked(began)
	l.judgeLocked()
}

// observe takes one event of the watch.
func (l *Liveness) observe(e Event[volume.NodeID, volume.Node]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.contactLocked(time.Now())
	switch e.Kind {
	case Deleted:
		if s := l.seen[e.Key]; s != nil {
			s.ended = true
		}
	case Put:
		l.sightLocked(e.Object)
	}
	l.judgeLocked()
}

func (l *Liveness) sightLocked(n volume.Node) {
	s := l.seen[n.ID]
	if s == nil {
		s = &sighting{at: l.observed, fresh: !n.Leaving}
		l.seen[n.ID] = s
	}
	if s.heartbeat != n.Heartbeat || s.ended && !n.Leaving {
		s.at = l.observed
	}
	s.heartbeat, s.ended, s.lease = n.Heartbeat, n.Leaving, n.Lease
	if s.lease <= 0 {
		s.lease = unknownLease
	}
}

// contactLocked notes a sign of life of the store at time t.
func (l *Liveness) contactLocked(t time.Time) {
	passed := t.Sub(l.contact)
	if passed <= 0 {
		return
	}
	if !l.contact.IsZero() && passed <= contactGap {
		l.observed += passed
	}
	l.contact = t
}

// judgeLocked compares all judgements with the last ones, and logs the changes.
func (l *Liveness) judgeLocked() {
	for id, s := range l.seen {
		fresh := l.freshLocked(s)
		if fresh == s.fresh {
			continue
		}
		s.fresh = fresh
		if fresh {
			l.log.Info("node is back", "node", id)
		} else {
			l.log.Info("node is away", "node", id, "inOrder", s.ended)
		}
	}
}
