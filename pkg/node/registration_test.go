package node

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func identity() volume.Node {
	return volume.Node{ID: "n1", AgentAddr: "127.0.0.1:1", ReplicaAddr: "127.0.0.1:2", Lease: 8 * time.Second,
		Topology: map[string]string{volume.TopologyHost: "n1"}}
}

func TestRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		var free atomic.Int64
		free.Store(100)
		r, err := New(Options{Identity: identity(), Nodes: s.Nodes(), Logger: slog.New(slog.DiscardHandler),
			Pools: func() []volume.Pool { return []volume.Pool{{Name: "p", Free: free.Load()}} }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		get := func() volume.Node {
			t.Helper()
			n, err := s.Nodes().Get(t.Context(), "n1")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		time.Sleep(time.Second)
		first := get()
		free.Store(50)
		time.Sleep(4 * time.Second)
		second := get()
		if second.Heartbeat <= first.Heartbeat || second.Pools[0].Free != 50 || second.Leaving {
			t.Errorf("after two renewals: %+v, was %+v", second, first)
		}
		if r.Self().Heartbeat != second.Heartbeat {
			t.Errorf("Self has heartbeat %d, the store %d", r.Self().Heartbeat, second.Heartbeat)
		}
		s.FailNext(memory.Before) // one renewal is lost
		time.Sleep(6 * time.Second)
		if third := get(); third.Heartbeat <= second.Heartbeat {
			t.Error("no renewal after the store failed once")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := r.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !get().Leaving {
			t.Error("not marked as leaving")
		}
		_ = s.Close()
	})
}

// A node that comes back continues the count of its heartbeats, or observers
// would take it for stale.
func TestHeartbeatContinues(t *testing.T) {
	s := memory.New()
	old := identity()
	old.Heartbeat, old.Leaving = 41, true
	if _, err := s.Nodes().Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{Identity: identity(), Nodes: s.Nodes(), Logger: slog.New(slog.DiscardHandler), Pools: func() []volume.Pool { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.renew(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Nodes().Get(t.Context(), "n1"); n.Heartbeat != 42 || n.Leaving {
		t.Errorf("got %+v", n)
	}
}

func TestNewRefuses(t *testing.T) {
	short := identity()
	short.Lease = time.Millisecond
	for name, id := range map[string]volume.Node{"no name": {Lease: time.Second}, "short lease": short} {
		if _, err := New(Options{Identity: id}); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
