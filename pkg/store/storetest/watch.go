package storetest

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

type nodeEvent = store.Event[volume.NodeID, volume.Node]

// view is what a watch's reader knows: heartbeats by node.
type view struct {
	t      *testing.T
	events <-chan nodeEvent
	state  map[volume.NodeID]uint64
	syncs  int
}

func watchNodes(t *testing.T, s Subject, key volume.NodeID) *view {
	t.Helper()
	events, err := s.Store.Nodes().Watch(t.Context(), key)
	require(t, err)
	return &view{t: t, events: events, state: map[volume.NodeID]uint64{}}
}

// next reads one event.
func (v *view) next() nodeEvent {
	v.t.Helper()
	select {
	case ev, ok := <-v.events:
		if !ok {
			v.t.Fatal("the watch ended")
		}
		switch ev.Kind {
		case store.Put:
			if ev.Key != ev.Object.ID || ev.Object.Version <= 0 {
				v.t.Fatalf("event %+v", ev)
			}
			v.state[ev.Key] = ev.Object.Heartbeat
		case store.Deleted:
			delete(v.state, ev.Key)
		case store.Synced:
			v.syncs++
		default:
			v.t.Fatalf("event %+v", ev)
		}
		return ev
	case <-time.After(patience):
		v.t.Fatalf("no event; state %v after %d syncs", v.state, v.syncs)
		panic("unreachable")
	}
}

// until reads events until the state is as wanted.
func (v *view) until(want map[volume.NodeID]uint64) {
	v.t.Helper()
	for !maps.Equal(v.state, want) {
		v.next()
	}
}

// synced reads events up to the next Synced.
func (v *view) synced() {
	v.t.Helper()
	for v.next().Kind != store.Synced {
	}
}

func (v *view) expect(kind store.EventKind, key volume.NodeID, heartbeat uint64) {
	v.t.Helper()
	ev := v.next()
	if ev.Kind != kind || ev.Key != key || (kind == store.Put && ev.Object.Heartbeat != heartbeat) {
		v.t.Fatalf("event %+v, want kind %d of %q with heartbeat %d", ev, kind, key, heartbeat)
	}
}

func beat(t *testing.T, s Subject, id volume.NodeID) {
	t.Helper()
	require(t, increment(soon(t), s.Other.Nodes(), id))
}

func remove(t *testing.T, s Subject, id volume.NodeID) {
	t.Helper()
	n, err := s.Other.Nodes().Get(soon(t), id)
	require(t, err)
	require(t, s.Other.Nodes().Delete(soon(t), n))
}

func testWatchChanges(t *testing.T, s Subject) {
	empty := watchNodes(t, s, "")
	empty.expect(store.Synced, "", 0)

	create(t, s.Other.Nodes(), Node("b"))
	create(t, s.Store.Nodes(), Node("a"))
	create(t, s.Other.Volumes(), Volume("not a node"))
	v := watchNodes(t, s, "")
	v.expect(store.Put, "a", 0)
	v.expect(store.Put, "b", 0)
	v.expect(store.Synced, "", 0)
	for i := uint64(1); i <= 20; i++ {
		beat(t, s, "a")
		beat(t, s, "b")
		v.expect(store.Put, "a", i)
		v.expect(store.Put, "b", i)
	}
	remove(t, s, "a")
	v.expect(store.Deleted, "a", 0)
	create(t, s.Other.Nodes(), Node("a"))
	v.expect(store.Put, "a", 0)

	// The first one has seen the same, in its own time.
	empty.until(map[volume.NodeID]uint64{"a": 0, "b": 20})
}

func testWatchKey(t *testing.T, s Subject) {
	v := watchNodes(t, s, "a")
	v.expect(store.Synced, "", 0)
	create(t, s.Other.Nodes(), Node("aa"))
	create(t, s.Other.Nodes(), Node("a"))
	beat(t, s, "aa")
	beat(t, s, "a")
	remove(t, s, "aa")
	remove(t, s, "a")
	create(t, s.Other.Nodes(), Node("a"))
	v.expect(store.Put, "a", 0)
	v.expect(store.Put, "a", 1)
	v.expect(store.Deleted, "a", 0)
	v.expect(store.Put, "a", 0)

	second := watchNodes(t, s, "a")
	second.expect(store.Put, "a", 0)
	second.expect(store.Synced, "", 0)
}

// change does while a watch is away everything that can happen to an object.
func change(t *testing.T, s Subject) map[volume.NodeID]uint64 {
	t.Helper()
	beat(t, s, "changed")
	remove(t, s, "gone")
	remove(t, s, "reborn")
	create(t, s.Other.Nodes(), Node("reborn"))
	create(t, s.Other.Nodes(), Node("new"))
	create(t, s.Other.Nodes(), Node("brief"))
	remove(t, s, "brief")
	return map[volume.NodeID]uint64{"changed": 1, "reborn": 0, "same": 0, "new": 0}
}

func begin(t *testing.T, s Subject) (all, one *view) {
	t.Helper()
	for _, id := range []volume.NodeID{"changed", "gone", "reborn", "same"} {
		create(t, s.Other.Nodes(), Node(id))
	}
	beat(t, s, "reborn")
	all, one = watchNodes(t, s, ""), watchNodes(t, s, "gone")
	all.synced()
	one.synced()
	// A change that arrives shows that both streams are up.
	beat(t, s, "gone")
	for all.state["gone"] == 0 {
		all.next()
	}
	for one.state["gone"] == 0 {
		one.next()
	}
	return all, one
}

// requireAlive makes sure that a watch delivers changes.
func requireAlive(t *testing.T, s Subject, v *view) {
	t.Helper()
	before := v.state["same"]
	beat(t, s, "same")
	for v.state["same"] == before {
		v.next()
	}
}

func testWatchBreak(t *testing.T, s Subject) {
	all, one := begin(t, s)
	s.Break()
	want := change(t, s)
	all.until(want)
	one.until(map[volume.NodeID]uint64{})
	if all.syncs == 1 {
		all.synced() // a break is told to the reader
	}
	requireAlive(t, s, all)
}

func testWatchCut(t *testing.T, s Subject) {
	all, one := begin(t, s)
	s.Cut()
	want := change(t, s)
	s.Restore()
	all.until(want)
	all.synced()
	one.until(map[volume.NodeID]uint64{})
	requireAlive(t, s, all)
}

func testWatchCompaction(t *testing.T, s Subject) {
	all, one := begin(t, s)
	s.Cut()
	want := change(t, s)
	s.Compact(t)
	beat(t, s, "new")
	want["new"] = 1
	s.Restore()
	all.until(want)
	all.synced()
	one.until(map[volume.NodeID]uint64{})
	requireAlive(t, s, all)
}

func testWatchStartedWhileCut(t *testing.T, s Subject) {
	create(t, s.Other.Nodes(), Node("same"))
	s.Cut()
	v := watchNodes(t, s, "")
	beat(t, s, "same")
	s.Restore()
	v.expect(store.Put, "same", 1)
	v.expect(store.Synced, "", 0)
	requireAlive(t, s, v)
}

func testWatchSlowReader(t *testing.T, s Subject) {
	const changes = 1200 // more than any queue holds
	v := watchNodes(t, s, "")
	n := create(t, s.Other.Nodes(), Node("a"))
	for range changes {
		n.Heartbeat++
		n = update(t, s.Other.Nodes(), n)
	}
	v.until(map[volume.NodeID]uint64{"a": changes})
}

func testWatchConverges(t *testing.T, s Subject) {
	v := watchNodes(t, s, "")
	want := map[volume.NodeID]uint64{}
	for i := range 60 {
		id := nodeName(i % 7)
		switch _, ok := want[id]; {
		case !ok:
			create(t, s.Other.Nodes(), Node(id))
			want[id] = 0
		case i%5 == 0:
			remove(t, s, id)
			delete(want, id)
		default:
			beat(t, s, id)
			want[id]++
		}
		switch i % 20 {
		case 6:
			s.Break()
		case 12:
			s.Cut()
		case 15:
			s.Restore()
		}
	}
	v.until(want)
}

func testWatchEnds(t *testing.T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	events, err := s.Store.Nodes().Watch(ctx, "")
	require(t, err)
	create(t, s.Other.Nodes(), Node("a")) // delivered to nobody
	cancel()
	eventually(t, func(context.Context) error {
		select {
		case _, ok := <-events:
			if !ok {
				return nil
			}
		default:
		}
		return fmt.Errorf("the channel is still open")
	})
}

func testWatchUnreadable(t *testing.T, s Subject) {
	create(t, s.Other.Nodes(), Node("a"))
	v := watchNodes(t, s, "")
	v.synced()
	s.PutRaw(t, "nodes/x", []byte("garbage"))
	beat(t, s, "a")
	v.expect(store.Put, "a", 1)
	again := watchNodes(t, s, "")
	again.expect(store.Put, "a", 1)
	again.expect(store.Synced, "", 0)
}
