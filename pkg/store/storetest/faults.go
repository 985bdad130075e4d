package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// testLostAnswer: an update whose answer is lost says so, was applied once, and
// only another successful update settles it.
func testLostAnswer(t *testing.T, s Subject) {
	nodes := s.Store.Nodes()
	before := create(t, nodes, Node("a"))
	change := before
	change.Heartbeat = 1

	s.LoseAnswers()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := nodes.Update(ctx, change)
	requireErr(t, err, volume.ErrUnavailable)
	if errors.Is(err, volume.ErrConflict) {
		t.Fatalf("%v also claims a conflict", err)
	}
	eventually(t, func(ctx context.Context) error {
		got, err := s.Other.Nodes().Get(ctx, "a")
		if err == nil && got.Heartbeat != 1 {
			err = errors.New("the update has not arrived")
		}
		return err
	})
	s.Restore()

	// The same update again meets its own success.
	again(t, func(ctx context.Context) error {
		_, err := nodes.Update(ctx, change)
		return err
	}, volume.ErrConflict)
	got, err := nodes.Get(soon(t), "a")
	require(t, err)
	got.Heartbeat++
	settled := update(t, nodes, got)
	if settled.Heartbeat != 2 {
		t.Fatalf("settled at %d", settled.Heartbeat)
	}
}

// again repeats a request until the connection is back and gives the error
// wanted (nil for success).
func again(t *testing.T, request func(context.Context) error, want error) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := request(ctx)
		switch {
		case errors.Is(err, want): // nil is nil
			return nil
		case errors.Is(err, volume.ErrUnavailable):
			return err
		}
		t.Fatalf("got %v, want %v", err, want)
		return nil
	})
}

// requests is one request of each sort on node "a".
func requests(s Subject, stored volume.Node) map[string]func(context.Context) error {
	nodes := s.Store.Nodes()
	return map[string]func(context.Context) error{
		"get":    func(ctx context.Context) error { _, err := nodes.Get(ctx, "a"); return err },
		"list":   func(ctx context.Context) error { _, err := nodes.List(ctx); return err },
		"create": func(ctx context.Context) error { _, err := nodes.Create(ctx, Node("b")); return err },
		"update": func(ctx context.Context) error { _, err := nodes.Update(ctx, stored); return err },
		"delete": func(ctx context.Context) error { return nodes.Delete(ctx, stored) },
	}
}

// bounded runs a request that must not outlast its deadline.
func bounded(t *testing.T, request func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- request() }()
	select {
	case err := <-result:
		return err
	case <-time.After(patience):
		t.Fatalf("no answer after %v", patience)
		return nil
	}
}

func testUnreachable(t *testing.T, s Subject) {
	stored := create(t, s.Store.Nodes(), Node("a"))
	s.Cut()
	for name, request := range requests(s, stored) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := bounded(t, func() error { return request(ctx) })
			requireErr(t, err, volume.ErrUnavailable)
			requireErr(t, err, context.DeadlineExceeded)
		})
	}
	s.Restore()
	again(t, func(ctx context.Context) error {
		_, err := s.Store.Nodes().List(ctx)
		return err
	}, nil)
}

func testNoDeadline(t *testing.T, s Subject) {
	stored := create(t, s.Store.Nodes(), Node("a"))
	s.Cut()
	var wg sync.WaitGroup
	for name, request := range requests(s, stored) {
		wg.Go(func() { // all at once: each waits for the store's own timeout
			err := request(context.Background())
			if !errors.Is(err, volume.ErrUnavailable) {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
	require(t, bounded(t, func() error { wg.Wait(); return nil }))
	s.Restore()
}

func testCancelled(t *testing.T, s Subject) {
	stored := create(t, s.Store.Nodes(), Node("a"))
	s.Cut()
	for name, request := range requests(s, stored) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel) // most likely while it waits; before is right too
			err := bounded(t, func() error { return request(ctx) })
			requireErr(t, err, volume.ErrUnavailable)
			requireErr(t, err, context.Canceled)
		})
	}
	s.Restore()
}

func testClosed(t *testing.T, s Subject) {
	stored := create(t, s.Store.Nodes(), Node("a"))
	watch, err := s.Store.Nodes().Watch(t.Context(), "")
	require(t, err)
	require(t, s.Store.Close())
	require(t, s.Store.Close())
	for name, request := range requests(s, stored) {
		t.Run(name, func(t *testing.T) { requireErr(t, request(soon(t)), volume.ErrClosed) })
	}
	_, err = s.Store.Nodes().Watch(t.Context(), "")
	requireErr(t, err, volume.ErrClosed)
	eventually(t, func(context.Context) error {
		select {
		case _, ok := <-watch:
			if !ok {
				return nil
			}
		default:
		}
		return fmt.Errorf("the watch goes on")
	})
	_, err = s.Other.Nodes().Get(soon(t), "a")
	require(t, err)
}
