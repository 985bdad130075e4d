package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/record"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// row is one stored object, in its stored form.
type row struct {
	bytes   []byte
	version int64
}

// table is all objects of one kind. It is guarded by data.mu.
type table[K ~string, T any] struct {
	kind    record.Kind[K, T]
	rows    map[K]row
	watches map[*watch[K, T]]struct{}
}

func newTable[K ~string, T any](kind record.Kind[K, T]) table[K, T] {
	return table[K, T]{kind: kind, rows: map[K]row{}, watches: map[*watch[K, T]]struct{}{}}
}

func (t *table[K, T]) key(path string) (K, bool) {
	key, ok := strings.CutPrefix(path, t.kind.Name+"/")
	return K(key), ok
}

func (t *table[K, T]) putLocked(key K, bytes []byte, version int64) {
	t.rows[key] = row{bytes: bytes, version: version}
	for w := range t.watches {
		w.putLocked(key, t.rows[key])
	}
}

func (t *table[K, T]) deleteLocked(key K) {
	delete(t.rows, key)
	for w := range t.watches {
		w.deleteLocked(key)
	}
}

// objects is one connection's view of one table.
type objects[K ~string, T any] struct {
	conn  *Store
	table *table[K, T]
}

func (o *objects[K, T]) op(verb Verb, key K) Op {
	return Op{Verb: verb, Kind: o.table.kind.Name, Key: string(key)}
}

// Get implements store.Objects.
func (o *objects[K, T]) Get(ctx context.Context, key K) (T, error) {
	var obj T
	if err := o.table.kind.CheckKey(key); err != nil {
		return obj, err
	}
	err := o.do(ctx, o.op(Get, key), func() (err error) {
		r, ok := o.table.rows[key]
		if !ok {
			return fmt.Errorf("%s: %w", o.table.kind.Path(key), volume.ErrNotFound)
		}
		obj, err = o.table.kind.Decode(key, r.bytes, r.version)
		return err
	})
	return obj, err
}

// List implements store.Objects.
func (o *objects[K, T]) List(ctx context.Context) ([]T, error) {
	var objs []T
	err := o.do(ctx, o.op(List, ""), func() error {
		var errs []error
		for _, key := range slices.Sorted(maps.Keys(o.table.rows)) {
			r := o.table.rows[key]
			obj, err := o.table.kind.Decode(key, r.bytes, r.version)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			objs = append(objs, obj)
		}
		return errors.Join(errs...)
	})
	return objs, err
}

// Create implements store.Objects.
func (o *objects[K, T]) Create(ctx context.Context, obj T) (T, error) {
	key := o.table.kind.Key(&obj)
	if err := o.table.kind.CheckKey(key); err != nil {
		return obj, err
	}
	return o.write(ctx, o.op(Create, key), obj, func() error {
		if _, ok := o.table.rows[key]; ok {
			return fmt.Errorf("%s: %w", o.table.kind.Path(key), volume.ErrExists)
		}
		return nil
	})
}

// Update implements store.Objects.
func (o *objects[K, T]) Update(ctx context.Context, obj T) (T, error) {
	if err := o.table.kind.CheckStored(&obj); err != nil {
		return obj, err
	}
	return o.write(ctx, o.op(Update, o.table.kind.Key(&obj)), obj, func() error { return o.compareLocked(&obj) })
}

// Delete implements store.Objects.
func (o *objects[K, T]) Delete(ctx context.Context, obj T) error {
	if err := o.table.kind.CheckStored(&obj); err != nil {
		return err
	}
	key := o.table.kind.Key(&obj)
	return o.do(ctx, o.op(Delete, key), func() error {
		if err := o.compareLocked(&obj); err != nil {
			return err
		}
		o.conn.data.revision++
		o.table.deleteLocked(key)
		return nil
	})
}

// compareLocked is the compare of compare-and-swap; the caller holds data.mu.
func (o *objects[K, T]) compareLocked(obj *T) error {
	key, version := o.table.kind.Key(obj), *o.table.kind.Version(obj)
	r, ok := o.table.rows[key]
	if !ok {
		return fmt.Errorf("%s: %w", o.table.kind.Path(key), volume.ErrNotFound)
	}
	if r.version != version {
		return fmt.Errorf("%s: at version %d, not %d: %w", o.table.kind.Path(key), r.version, version, volume.ErrConflict)
	}
	return nil
}

// write stores obj if check passes, and returns it as a reader would get it.
func (o *objects[K, T]) write(ctx context.Context, op Op, obj T, check func() error) (T, error) {
	kind := o.table.kind
	bytes, err := kind.Encode(&obj)
	if err != nil {
		return obj, err
	}
	var stored T
	err = o.do(ctx, op, func() (err error) {
		if err := check(); err != nil {
			return err
		}
		o.conn.data.revision++
		o.table.putLocked(kind.Key(&obj), bytes, o.conn.data.revision)
		stored, err = kind.Decode(kind.Key(&obj), bytes, o.conn.data.revision)
		return err
	})
	if err != nil {
		return obj, err
	}
	return stored, nil
}

// do runs one request's body under data.mu, with what is to go wrong.
func (o *objects[K, T]) do(ctx context.Context, op Op, body func() error) error {
	ctx, cancel := store.WithRequestTimeout(ctx, store.DefaultRequestTimeout)
	defer cancel()
	fault, err := o.conn.begin(ctx, op)
	if err != nil {
		return err
	}
	apply := func() error {
		o.conn.data.mu.Lock()
		defer o.conn.data.mu.Unlock()
		return body()
	}
	switch fault {
	case Before:
		return unavailable(op, errInjected)
	case After:
		_ = apply() // its answer, whatever it was, is lost
		return unavailable(op, errInjected)
	case Late:
		o.conn.mu.Lock()
		o.conn.late = append(o.conn.late, func() { _ = apply() })
		o.conn.mu.Unlock()
		return unavailable(op, errInjected)
	}
	return apply()
}
