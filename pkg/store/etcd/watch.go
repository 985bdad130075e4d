package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/feed"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Pauses between attempts to set up a watch.
const (
	watchRetryMin = 50 * time.Millisecond
	watchRetryMax = time.Second
)

// watch is one reader's view. Its follow goroutine owns it.
type watch[K ~string, T any] struct {
	objects *objects[K, T]
	key     K // "" for all
	feed    *feed.Feed[K, T]
	known   map[K]struct{} // what the reader was told exists
	bad     map[K]int64    // objects that can't be read, by the revision complained about
}

// Watch implements store.Objects.
func (o *objects[K, T]) Watch(ctx context.Context, key K) (<-chan store.Event[K, T], error) {
	if key != "" {
		if err := o.kind.CheckKey(key); err != nil {
			return nil, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, fmt.Errorf("watch %s: %w", o.kind.Path(key), volume.ErrClosed)
	}
	w := &watch[K, T]{objects: o, key: key, feed: feed.New[K, T](), known: map[K]struct{}{}, bad: map[K]int64{}}
	out := make(chan store.Event[K, T])
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(o.ctx, cancel)
	o.wg.Add(2)
	go func() {
		defer o.wg.Done()
		defer stop()
		defer cancel()
		w.follow(ctx)
	}()
	go func() {
		defer o.wg.Done()
		w.feed.Deliver(ctx, out)
	}()
	return out, nil
}

// follow delivers the state and then its changes, over and over, until ctx ends.
func (w *watch[K, T]) follow(ctx context.Context) {
	delay := watchRetryMin
	for {
		synced, err := w.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if synced {
			delay = watchRetryMin
		}
		w.objects.logger.Debug("store watch starts over", "watch", w.objects.kind.Path(w.key), "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		delay = min(2*delay, watchRetryMax)
	}
}

// run is one life of the watch: a list, then a stream from its revision on. It
// says whether it came as far as Synced, and why it ended.
func (w *watch[K, T]) run(ctx context.Context) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	revision, err := w.state(ctx)
	if err != nil {
		return false, err
	}
	stream, err := w.open(ctx, revision+1)
	if err != nil {
		return true, err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return true, err
		}
		if resp.Canceled {
			return true, fmt.Errorf("cancelled by the store: %s (compacted at %d)", resp.CancelReason, resp.CompactRevision)
		}
		for _, ev := range resp.Events {
			if ev.Type == mvccpb.Event_DELETE {
				w.deleted(w.objects.keyOf(ev.Kv.Key))
			} else {
				w.put(ev.Kv)
			}
		}
	}
}

// state delivers the present state, and returns its revision.
func (w *watch[K, T]) state(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, w.objects.timeout)
	defer cancel()
	kvs, revision, err := w.objects.list(ctx, w.key)
	if err != nil {
		return 0, err
	}
	there := make(map[K]struct{}, len(kvs))
	for _, kv := range kvs {
		there[w.objects.keyOf(kv.Key)] = struct{}{}
	}
	for key := range w.known {
		if _, ok := there[key]; !ok {
			w.deleted(key)
		}
	}
	for _, kv := range kvs {
		w.put(kv)
	}
	w.feed.Push(store.Event[K, T]{Kind: store.Synced})
	return revision, nil
}

// open starts a stream of changes. It speaks the protocol itself, because the
// client library's watch hides broken connections, which our readers are to
// see, and queues without bound.
func (w *watch[K, T]) open(ctx context.Context, revision int64) (pb.Watch_WatchClient, error) {
	create := &pb.WatchCreateRequest{Key: []byte(w.objects.path(w.key)), StartRevision: revision}
	if w.key == "" {
		create.RangeEnd = []byte(clientv3.GetPrefixRangeEnd(w.objects.path("")))
	}
	conn := w.objects.client.ActiveConnection()
	// A member that has lost its cluster ends the stream instead of keeping
	// silent.
	stream, err := pb.NewWatchClient(conn).Watch(clientv3.WithRequireLeader(ctx), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// put delivers one object. One that can't be read is left out, loudly: its
// reader learns why from Get, and the other objects' readers go on.
func (w *watch[K, T]) put(kv *mvccpb.KeyValue) {
	key := w.objects.keyOf(kv.Key)
	obj, err := w.objects.decode(kv)
	if err != nil {
		if w.bad[key] != kv.ModRevision {
			w.bad[key] = kv.ModRevision
			level := w.objects.logger.Error
			if errors.Is(err, volume.ErrFormatVersion) {
				level = w.objects.logger.Warn
			}
			level("stored object can't be read", "key", string(kv.Key), "error", err)
		}
		return
	}
	delete(w.bad, key)
	w.known[key] = struct{}{}
	w.feed.Push(store.Event[K, T]{Kind: store.Put, Key: key, Object: obj})
}

func (w *watch[K, T]) deleted(key K) {
	delete(w.known, key)
	delete(w.bad, key)
	w.feed.Push(store.Event[K, T]{Kind: store.Deleted, Key: key})
}
