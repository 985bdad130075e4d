package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-csi/holdfast/pkg/store/internal/record"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// pageSize is the number of objects that one request of a list reads.
const pageSize = 1000

// objects is one kind of object.
type objects[K ~string, T any] struct {
	*Store
	kind record.Kind[K, T]
}

func (o *objects[K, T]) path(key K) string { return o.prefix + o.kind.Path(key) }

// keyOf is the key of a stored path; the path must be this kind's.
func (o *objects[K, T]) keyOf(path []byte) K {
	return K(strings.TrimPrefix(string(path), o.path("")))
}

func (o *objects[K, T]) decode(kv *mvccpb.KeyValue) (T, error) {
	return o.kind.Decode(o.keyOf(kv.Key), kv.Value, kv.ModRevision)
}

// Get implements store.Objects.
func (o *objects[K, T]) Get(ctx context.Context, key K) (T, error) {
	var obj T
	if err := o.kind.CheckKey(key); err != nil {
		return obj, err
	}
	err := o.do(ctx, "get "+o.kind.Path(key), func(ctx context.Context) error {
		var resp *clientv3.GetResponse
		if err := retryRead(ctx, func() (err error) {
			resp, err = o.client.Get(ctx, o.path(key))
			return err
		}); err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return volume.ErrNotFound
		}
		var err error
		obj, err = o.decode(resp.Kvs[0])
		return err
	})
	return obj, err
}

// List implements store.Objects.
func (o *objects[K, T]) List(ctx context.Context) ([]T, error) {
	var objs []T
	err := o.do(ctx, "list "+o.kind.Name, func(ctx context.Context) error {
		kvs, _, err := o.list(ctx, "")
		if err != nil {
			return err
		}
		var errs []error
		objs = make([]T, 0, len(kvs))
		for _, kv := range kvs {
			obj, err := o.decode(kv)
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

// list reads all objects (or the one of key), sorted by key, as of one revision,
// which it returns.
func (o *objects[K, T]) list(ctx context.Context, key K) (kvs []*mvccpb.KeyValue, revision int64, err error) {
	from, end := o.path(key), clientv3.GetPrefixRangeEnd(o.path(""))
	if key != "" {
		end = from + "\x00" // the range that holds this key alone
	}
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision)}
		var resp *clientv3.GetResponse
		err := retryRead(ctx, func() (err error) {
			resp, err = o.client.Get(ctx, from, opts...)
			return err
		})
		if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) {
			// The revision of the first page is gone: read everything again.
			kvs, revision, from = nil, 0, o.path(key)
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		kvs = append(kvs, resp.Kvs...)
		if !resp.More || len(resp.Kvs) == 0 {
			return kvs, revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00" // the next possible key
	}
}

// Create implements store.Objects.
func (o *objects[K, T]) Create(ctx context.Context, obj T) (T, error) {
	key := o.kind.Key(&obj)
	if err := o.kind.CheckKey(key); err != nil {
		return obj, err
	}
	absent := clientv3.Compare(clientv3.CreateRevision(o.path(key)), "=", 0)
	return o.put(ctx, obj, condition{verb: "create", holds: absent, refused: volume.ErrExists})
}

// Update implements store.Objects.
func (o *objects[K, T]) Update(ctx context.Context, obj T) (T, error) {
	if err := o.kind.CheckStored(&obj); err != nil {
		return obj, err
	}
	return o.put(ctx, obj, o.unchanged("update", &obj))
}

// condition is the compare of a compare-and-swap.
type condition struct {
	verb    string // of the request, for errors
	holds   clientv3.Cmp
	refused error // what it means if it does not hold and the object is there
}

// unchanged is the condition that obj is still what the store has. A version is
// never 0 here (CheckStored), which to etcd would mean "absent".
func (o *objects[K, T]) unchanged(verb string, obj *T) condition {
	same := clientv3.Compare(clientv3.ModRevision(o.path(o.kind.Key(obj))), "=", *o.kind.Version(obj))
	return condition{verb: verb, holds: same, refused: volume.ErrConflict}
}

// put stores obj if the condition holds, and returns it as a reader gets it.
func (o *objects[K, T]) put(ctx context.Context, obj T, cond condition) (T, error) {
	key := o.kind.Key(&obj)
	data, err := o.kind.Encode(&obj)
	if err != nil {
		return obj, err
	}
	var stored T
	err = o.do(ctx, cond.verb+" "+o.kind.Path(key), func(ctx context.Context) error {
		revision, err := o.swap(ctx, key, cond, clientv3.OpPut(o.path(key), string(data)))
		if err != nil {
			return err
		}
		stored, err = o.kind.Decode(key, data, revision)
		return err
	})
	if err != nil {
		return obj, err
	}
	return stored, nil
}

// Delete implements store.Objects.
func (o *objects[K, T]) Delete(ctx context.Context, obj T) error {
	if err := o.kind.CheckStored(&obj); err != nil {
		return err
	}
	key := o.kind.Key(&obj)
	cond := o.unchanged("delete", &obj)
	return o.do(ctx, cond.verb+" "+o.kind.Path(key), func(ctx context.Context) error {
		_, err := o.swap(ctx, key, cond, clientv3.OpDelete(o.path(key)))
		return err
	})
}

// swap runs change if the condition holds and returns the change's revision;
// else it says what is there instead.
func (o *objects[K, T]) swap(ctx context.Context, key K, cond condition, change clientv3.Op) (int64, error) {
	resp, err := o.client.Txn(ctx).
		If(cond.holds).
		Then(change).
		Else(clientv3.OpGet(o.path(key), clientv3.WithKeysOnly())).
		Commit()
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	found := resp.Responses[0].GetResponseRange().GetKvs()
	if len(found) == 0 {
		return 0, volume.ErrNotFound
	}
	return 0, fmt.Errorf("it is at version %d: %w", found[0].ModRevision, cond.refused)
}
