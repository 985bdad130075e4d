// Package feed is the queue between a store's watch and its reader: the side
// that pushes never blocks, the reader may be slow, and memory stays bounded.
//
// It is not a log: once more than Limit events wait, the events of one key are
// folded into its newest, so at most Limit events plus one per key are held.
//
// Concurrency: any goroutine may Push; one goroutine runs Deliver.
package feed

import (
	"context"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/store"
)

// Limit is the number of waiting events from which on events are folded.
const Limit = 1024

// Feed is one watch's queue.
type Feed[K ~string, T any] struct {
	wake chan struct{} // holds one token when the queue has become non-empty

	mu     sync.Mutex
	queue  []store.Event[K, T] // guarded by mu
	foldAt int                 // guarded by mu; fold when the queue gets longer
}

// New makes an empty feed.
func New[K ~string, T any]() *Feed[K, T] {
	return &Feed[K, T]{wake: make(chan struct{}, 1), foldAt: Limit}
}

// Push appends events.
func (f *Feed[K, T]) Push(events ...store.Event[K, T]) {
	f.mu.Lock()
	f.queue = append(f.queue, events...)
	if len(f.queue) > f.foldAt {
		f.queue = fold(f.queue)
		// Folding again is worth its cost only after as many more events.
		f.foldAt = len(f.queue) + Limit
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // the token is there already
	}
}

// Deliver sends the events to out until ctx ends, then closes out.
func (f *Feed[K, T]) Deliver(ctx context.Context, out chan<- store.Event[K, T]) {
	defer close(out)
	for {
		ev, ok := f.pop()
		if !ok {
			select {
			case <-f.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case out <- ev:
		case <-ctx.Done():
			return
		}
	}
}

func (f *Feed[K, T]) pop() (store.Event[K, T], bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		f.queue, f.foldAt = nil, Limit
		return store.Event[K, T]{}, false
	}
	ev := f.queue[0]
	f.queue[0] = store.Event[K, T]{} // let go of the object
	f.queue = f.queue[1:]
	return ev, true
}

// fold keeps, of each key, the newest event at the place of its oldest: what
// existed before a Synced must not move behind it. Only the last Synced stays.
func fold[K ~string, T any](queue []store.Event[K, T]) []store.Event[K, T] {
	last := make(map[K]store.Event[K, T])
	lastSynced := -1
	for i, ev := range queue {
		if ev.Kind == store.Synced {
			lastSynced = i
		} else {
			last[ev.Key] = ev
		}
	}
	out := make([]store.Event[K, T], 0, len(last)+1)
	for i, ev := range queue {
		if ev.Kind == store.Synced {
			if i == lastSynced {
				out = append(out, ev)
			}
			continue
		}
		if newest, ok := last[ev.Key]; ok {
			out = append(out, newest)
			delete(last, ev.Key)
		}
	}
	return out
}
