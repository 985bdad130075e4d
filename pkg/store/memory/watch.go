package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/feed"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// watch is one reader's view. Its fields are guarded by data.mu.
type watch[K ~string, T any] struct {
	table *table[K, T]
	key   K // "" for all
	feed  *feed.Feed[K, T]
	known map[K]struct{} // what the reader was told exists
}

// Watch implements store.Objects.
func (o *objects[K, T]) Watch(ctx context.Context, key K) (<-chan store.Event[K, T], error) {
	if key != "" {
		if err := o.table.kind.CheckKey(key); err != nil {
			return nil, err
		}
	}
	s := o.conn
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, fmt.Errorf("watch %s: %w", o.table.kind.Name, volume.ErrClosed)
	}
	w := &watch[K, T]{table: o.table, key: key, feed: feed.New[K, T](), known: map[K]struct{}{}}
	out := make(chan store.Event[K, T])
	// Both goroutines end with ctx or the connection; Close waits for them.
	ctx, cancel := context.WithCancel(ctx)
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		defer cancel()
		o.follow(ctx, w)
	}()
	go func() {
		defer s.wg.Done()
		w.feed.Deliver(ctx, out)
	}()
	return out, nil
}

// follow keeps w registered while the connection is whole, and delivers the
// state anew whenever it has become whole again.
func (o *objects[K, T]) follow(ctx context.Context, w *watch[K, T]) {
	s := o.conn
	for {
		s.mu.Lock()
		open, broken := s.open, s.broken
		s.mu.Unlock()
		select {
		case <-open:
		case <-s.closed:
			return
		case <-ctx.Done():
			return
		}
		s.data.mu.Lock()
		w.stateLocked()
		w.table.watches[w] = struct{}{}
		s.data.mu.Unlock()
		ended := false
		select {
		case <-broken:
		case <-s.closed:
			ended = true
		case <-ctx.Done():
			ended = true
		}
		s.data.mu.Lock()
		delete(w.table.watches, w)
		s.data.mu.Unlock()
		if ended {
			return
		}
	}
}

// stateLocked delivers the present state: what vanished, what is there, Synced.
func (w *watch[K, T]) stateLocked() {
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		if _, ok := w.table.rows[key]; !ok {
			w.deleteLocked(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.table.rows)) {
		w.putLocked(key, w.table.rows[key])
	}
	w.feed.Push(store.Event[K, T]{Kind: store.Synced})
}

// putLocked delivers one object. One that can't be decoded is left out: its
// reader learns why from Get, and the other objects' readers go on.
func (w *watch[K, T]) putLocked(key K, r row) {
	if w.key != "" && w.key != key {
		return
	}
	obj, err := w.table.kind.Decode(key, r.bytes, r.version)
	if err != nil {
		return
	}
	w.known[key] = struct{}{}
	w.feed.Push(store.Event[K, T]{Kind: store.Put, Key: key, Object: obj})
}

func (w *watch[K, T]) deleteLocked(key K) {
	if w.key != "" && w.key != key {
		return
	}
	delete(w.known, key)
	w.feed.Push(store.Event[K, T]{Kind: store.Deleted, Key: key})
}
