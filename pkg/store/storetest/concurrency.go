package storetest

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func testLinearizable(t *testing.T, s Subject) {
	create(t, s.Other.Nodes(), Node("a"))
	for i := uint64(1); i <= 50; i++ {
		require(t, increment(soon(t), s.Other.Nodes(), "a"))
		got, err := s.Store.Nodes().Get(soon(t), "a")
		require(t, err)
		if got.Heartbeat != i {
			t.Fatalf("read %d after %d was answered", got.Heartbeat, i)
		}
		all, err := s.Store.Nodes().List(soon(t))
		require(t, err)
		if all[0].Heartbeat != i {
			t.Fatalf("listed %d after %d was answered", all[0].Heartbeat, i)
		}
	}
}

// race runs one function per worker, half of them on each connection, and
// returns how many succeeded; all others must fail with want.
func race(t *testing.T, s Subject, want error, attempt func(store.Store, int) error) int {
	t.Helper()
	const workers = 16
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { errs[i] = attempt([]store.Store{s.Store, s.Other}[i%2], i) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, want):
			t.Errorf("got %v, want %v", err, want)
		}
	}
	return won
}

func testOneCreateWins(t *testing.T, s Subject) {
	ctx := soon(t)
	won := race(t, s, volume.ErrExists, func(st store.Store, i int) error {
		n := Node("a")
		n.Heartbeat = uint64(i)
		_, err := st.Nodes().Create(ctx, n)
		return err
	})
	if won != 1 {
		t.Fatalf("%d creates won", won)
	}
}

func testOneUpdateWins(t *testing.T, s Subject) {
	ctx := soon(t)
	base := create(t, s.Store.Nodes(), Node("a"))
	won := race(t, s, volume.ErrConflict, func(st store.Store, i int) error {
		n := base
		n.Heartbeat = uint64(i + 1)
		_, err := st.Nodes().Update(ctx, n)
		return err
	})
	if won != 1 {
		t.Fatalf("%d updates won", won)
	}
}

func testIncrements(t *testing.T, s Subject) {
	const each = 20
	ctx := soon(t)
	create(t, s.Store.Nodes(), Node("a"))
	var g errgroup.Group
	for i := range 8 {
		nodes := []store.Store{s.Store, s.Other}[i%2].Nodes()
		g.Go(func() error {
			for range each {
				if err := increment(ctx, nodes, "a"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require(t, g.Wait())
	got, err := s.Store.Nodes().Get(ctx, "a")
	require(t, err)
	if got.Heartbeat != 8*each {
		t.Fatalf("%d increments of %d survived", got.Heartbeat, 8*each)
	}
}
