// Package memory is a Store in memory, for tests: it behaves as the real ones
// do (it passes package storetest, and keeps objects in their stored form), and
// it can be made to fail on demand.
//
// It is not durable, and is not for production. New makes an empty store with
// one connection; Connect makes further connections to the same data, each with
// its own faults, so that a test can cut one node off and not the others.
//
// Concurrency: data.mu guards the rows and the list of watches; Store.mu guards
// one connection's faults. They are never held together.
package memory

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/record"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// data is what all connections share.
type data struct {
	mu       sync.Mutex
	revision int64                             // guarded by mu; the version of the newest change
	volumes  table[volume.ID, volume.Volume]   // guarded by mu
	nodes    table[volume.NodeID, volume.Node] // guarded by mu
}

// Store is one connection to an in-memory store.
type Store struct {
	data   *data
	closed chan struct{}  // closed by Close
	wg     sync.WaitGroup // the goroutines of watches

	mu     sync.Mutex
	ended  bool           // guarded by mu; closed is closed
	open   chan struct{}  // guarded by mu; closed while requests may pass
	paused bool           // guarded by mu; open is not closed
	broken chan struct{}  // guarded by mu; closed to break the watches under way
	fault  func(Op) Fault // guarded by mu
	next   []Fault        // guarded by mu; for the next changes, in order
	late   []func()       // guarded by mu; changes that Settle applies
}

var _ store.Store = (*Store)(nil)

// New makes an empty store and a connection to it.
func New() *Store {
	d := &data{volumes: newTable(record.Volumes), nodes: newTable(record.Nodes)}
	return connect(d)
}

// Connect makes another connection to the same data, without faults.
func (s *Store) Connect() *Store { return connect(s.data) }

func connect(d *data) *Store {
	s := &Store{data: d, closed: make(chan struct{}), open: make(chan struct{}), broken: make(chan struct{})}
	close(s.open)
	return s
}

// Volumes implements store.Store.
func (s *Store) Volumes() store.Objects[volume.ID, volume.Volume] {
	return &objects[volume.ID, volume.Volume]{conn: s, table: &s.data.volumes}
}

// Nodes implements store.Store.
func (s *Store) Nodes() store.Objects[volume.NodeID, volume.Node] {
	return &objects[volume.NodeID, volume.Node]{conn: s, table: &s.data.nodes}
}

// Close implements store.Store. The data stays for other connections.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.ended {
		s.ended = true
		close(s.closed)
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// begin lets a request in: it waits while the connection is paused and says
// what is to go wrong with it.
func (s *Store) begin(ctx context.Context, op Op) (Fault, error) {
	for {
		s.mu.Lock()
		open, paused, ended := s.open, s.paused, s.ended
		s.mu.Unlock()
		switch {
		case ended:
			return None, fmt.Errorf("%s: %w", op, volume.ErrClosed)
		case ctx.Err() != nil:
			return None, unavailable(op, ctx.Err())
		case !paused:
			return s.faultFor(op), nil
		}
		select {
		case <-open:
		case <-s.closed:
		case <-ctx.Done():
		}
	}
}

func unavailable(op Op, why error) error {
	return fmt.Errorf("%s: %w: %w", op, volume.ErrUnavailable, why)
}
