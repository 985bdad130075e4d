// Package storetest is the conformance suite of store.Store: every
// implementation runs it (Run), so that what holds for the one in memory holds
// for the real ones. It also has Proxy, which stands between a client and a
// server and cuts, silences or breaks their connections.
//
// It is for tests only. Its waits are deadlines, never measurements.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// Subject is one empty store under test, with the means to disturb it.
type Subject struct {
	// Store is the connection under test.
	Store store.Store
	// Other is another connection to the same data that is never disturbed.
	Other store.Store
	// Cut makes the data unreachable for Store: requests get no answer. Restore
	// ends Cut and LoseAnswers.
	Cut, Restore func()
	// LoseAnswers lets Store's requests arrive, but not their answers.
	LoseAnswers func()
	// Break breaks Store's connections once.
	Break func()
	// Compact makes the store forget its history, as time would.
	Compact func(t *testing.T)
	// PutRaw stores bytes as they are under "KIND/KEY".
	PutRaw func(t *testing.T, path string, data []byte)
}

// Run runs the suite. open makes an empty store for each test, and cleans up by
// t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	tests := []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"Lifecycle", testLifecycle},
		{"EveryFieldIsKept", testEveryField},
		{"StaleVersionsConflict", testStale},
		{"RecreatedObjectIsAnother", testRecreated},
		{"CallerOwnsObjects", testOwnership},
		{"BadKeys", testBadKeys},
		{"NeverStored", testNeverStored},
		{"LargeObjects", testTooLarge},
		{"KindsAreApart", testKinds},
		{"ListIsSortedAndWhole", testList},
		{"UnreadableObjects", testUnreadable},
		{"ReadsAreLinearizable", testLinearizable},
		{"OneCreateWins", testOneCreateWins},
		{"OneUpdateWins", testOneUpdateWins},
		{"NoIncrementIsLost", testIncrements},
		{"LostAnswer", testLostAnswer},
		{"UnreachableFailsInTime", testUnreachable},
		{"UnreachableWithoutDeadline", testNoDeadline},
		{"CancelledRequest", testCancelled},
		{"Closed", testClosed},
		{"WatchStateThenChanges", testWatchChanges},
		{"WatchOneKey", testWatchKey},
		{"WatchAfterBreak", testWatchBreak},
		{"WatchAfterCut", testWatchCut},
		{"WatchAfterCompaction", testWatchCompaction},
		{"WatchStartedWhileCut", testWatchStartedWhileCut},
		{"WatchSlowReader", testWatchSlowReader},
		{"WatchAlwaysEndsWithTheLastState", testWatchConverges},
		{"WatchEnds", testWatchEnds},
		{"WatchLeavesOutUnreadable", testWatchUnreadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

// Volume makes a volume for tests, with everything that is a must.
func Volume(name string) volume.Volume {
	return volume.Volume{
		ID:   volume.IDFor(name),
		UID:  "00000000-0000-4000-8000-000000000001",
		Spec: volume.Spec{Name: name, SizeBytes: 1 << 30, Params: volume.Params{Replicas: 1, Locality: volume.LocalityPreferred, CacheMode: volume.CacheWriteback}},
	}
}

// Node makes a node for tests.
func Node(id volume.NodeID) volume.Node {
	return volume.Node{ID: id, AgentAddr: "127.0.0.1:1", ReplicaAddr: "127.0.0.1:2", Lease: 5 * time.Second}
}

func requireErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func require(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// soon is a context whose deadline says that a test has failed.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// create stores an object of the subject's other connection.
func create[K ~string, T any](t *testing.T, objs store.Objects[K, T], obj T) T {
	t.Helper()
	out, err := objs.Create(soon(t), obj)
	require(t, err)
	return out
}

func update[K ~string, T any](t *testing.T, objs store.Objects[K, T], obj T) T {
	t.Helper()
	out, err := objs.Update(soon(t), obj)
	require(t, err)
	return out
}

// eventually repeats check until it returns nil.
func eventually(t *testing.T, check func(context.Context) error) {
	t.Helper()
	ctx := soon(t)
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("still after %v: %v", patience, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// increment adds one to a node's heartbeat by compare-and-swap, repeating it on
// conflicts.
func increment(ctx context.Context, nodes store.Objects[volume.NodeID, volume.Node], id volume.NodeID) error {
	for {
		n, err := nodes.Get(ctx, id)
		if err != nil {
			return fmt.Errorf("increment: %w", err)
		}
		n.Heartbeat++
		_, err = nodes.Update(ctx, n)
		if errors.Is(err, volume.ErrConflict) {
			continue
		}
		return err
	}
}
