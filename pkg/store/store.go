// Package store is where the truth about volumes and nodes is kept: one small
// interface over a consensus store that other people wrote: etcd (package
// store/etcd), embedded by the standalone or external. Package store/memory has
// it in memory, with faults on demand, for tests; package store/storetest is the
// conformance suite that both pass.
//
// Every update is a compare-and-swap on the object's version. An update whose
// answer was lost returns ErrUnavailable and may still happen later: only a
// later successful update settles it, never a read.
//
// All methods are safe for concurrent use, take their deadline from ctx, and
// return objects that the caller owns.
package store

import (
	"context"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Store holds the cluster's objects.
type Store interface {
	Volumes() Objects[volume.ID, volume.Volume]
	Nodes() Objects[volume.NodeID, volume.Node]
	// Close releases the connection; watches end.
	Close() error
}

// Objects is one kind of object, by key.
type Objects[K ~string, T any] interface {
	// Get returns an object with its version, or ErrNotFound. It is
	// linearizable: it sees every update that was answered before.
	Get(ctx context.Context, key K) (T, error)
	// List returns all objects, sorted by key; linearizable. Objects that can't
	// be read are left out and named in the error (ErrCorrupt,
	// ErrFormatVersion), which then comes with all the others.
	List(ctx context.Context) ([]T, error)
	// Create stores a new object and returns it with its version, or ErrExists.
	Create(ctx context.Context, obj T) (T, error)
	// Update replaces the object if its version is still obj's, and returns it
	// with its new version. ErrConflict when it changed, ErrNotFound when it is
	// gone, ErrUnavailable when nobody can know (see the package comment).
	Update(ctx context.Context, obj T) (T, error)
	// Delete removes the object if its version is still obj's; errors as Update.
	Delete(ctx context.Context, obj T) error
	// Watch delivers the present state (a Put for each object, then one Synced)
	// and every change after it, in order, until ctx ends; then the channel is
	// closed. After a broken connection the state is delivered again, with
	// Deletes for what vanished, so changes may be folded together but the last
	// state always arrives. With key != "" only that object is watched. The
	// reader should keep reading: when it lags by more than about a thousand
	// events, those of one key are folded into the newest. Objects that can't be
	// read are left out. An unreachable store is no error: the watch goes on
	// trying. Errors: ErrInvalid (key), ErrClosed.
	Watch(ctx context.Context, key K) (<-chan Event[K, T], error)
}

// EventKind says what a watch saw.
type EventKind uint8

// The kinds of events.
const (
	Put     EventKind = iota + 1 // Object is the new state
	Deleted                      // Key is gone
	Synced                       // all that existed at the (re)start has been delivered
)

// Event is one observation of a watch.
type Event[K ~string, T any] struct {
	Kind   EventKind
	Key    K
	Object T // Put only
}
