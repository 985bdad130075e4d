package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const lease = 5 * time.Second

// world is an observer in a synctest bubble, with a store that it reaches over a
// connection of its own.
type world struct {
	t    *testing.T
	data *memory.Store // the nodes' connection
	conn *memory.Store // the observer's
	live *store.Liveness
	log  sharedBuffer
}

// sharedBuffer is a log that is read while it may be written to.
type sharedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *sharedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *sharedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func inBubble(t *testing.T, test func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		data := memory.New()
		w := &world{t: t, data: data, conn: data.Connect()}
		w.live = store.NewLiveness(w.conn.Nodes(), slog.New(slog.NewTextHandler(&w.log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.live.Run(ctx) }()
		test(w)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		if err := errors.Join(w.conn.Close(), data.Close()); err != nil {
			t.Error(err)
		}
	})
}

// beat renews a node's lease, making the node if need be.
func (w *world) beat(id volume.NodeID) { w.put(id, false) }

func (w *world) put(id volume.NodeID, leaving bool) {
	w.t.Helper()
	n, err := w.data.Nodes().Get(w.t.Context(), id)
	if errors.Is(err, volume.ErrNotFound) {
		n, err = w.data.Nodes().Create(w.t.Context(), volume.Node{ID: id, Lease: lease})
	}
	if err == nil {
		n.Heartbeat++
		n.Leaving = leaving
		_, err = w.data.Nodes().Update(w.t.Context(), n)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// pass lets time pass while the given nodes renew their leases every second.
func (w *world) pass(d time.Duration, alive ...volume.NodeID) {
	w.t.Helper()
	for ; d > 0; d -= time.Second {
		for _, id := range alive {
			w.beat(id)
		}
		time.Sleep(min(d, time.Second))
	}
	synctest.Wait()
}

func (w *world) expect(id volume.NodeID, want bool) {
	w.t.Helper()
	synctest.Wait()
	if got := w.live.Fresh(id); got != want {
		w.t.Fatalf("%s is fresh: %v, want %v", id, got, want)
	}
}

func TestLeaseRunsOut(t *testing.T) {
	inBubble(t, func(w *world) {
		w.pass(30*time.Second, "a", "b")
		w.expect("a", true)
		w.expect("b", true)
		w.pass(3*time.Second, "b")
		w.expect("a", true) // last seen less than a lease ago
		w.pass(4*time.Second, "b")
		w.expect("a", false)
		w.expect("b", true)
		w.beat("a")
		w.expect("a", true)
	})
}

// The only node dies: nothing is heard any more, and it must be noticed.
func TestLeaseRunsOutInSilence(t *testing.T) {
	inBubble(t, func(w *world) {
		w.beat("a")
		w.pass(4 * time.Second)
		w.expect("a", true)
		w.pass(3 * time.Second)
		w.expect("a", false)
	})
}

func TestLeavingAndDeleted(t *testing.T) {
	inBubble(t, func(w *world) {
		w.beat("a")
		w.expect("a", true)
		w.put("a", true)
		w.expect("a", false)
		w.beat("a")
		w.expect("a", true)
		n, err := w.data.Nodes().Get(w.t.Context(), "a")
		if err == nil {
			err = w.data.Nodes().Delete(w.t.Context(), n)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.expect("a", false)
		w.beat("a")
		w.expect("a", true)
	})
}

// The first sight of a node renews its lease, whatever its heartbeat: it may
// have been renewed just before.
func TestFirstSight(t *testing.T) {
	inBubble(t, func(w *world) {
		w.expect("a", true) // nothing is known yet
		w.pass(9 * time.Second)
		w.expect("a", true)
		w.pass(3 * time.Second)
		w.expect("a", false) // never seen for long enough
		w.beat("a")
		w.pass(4 * time.Second)
		w.expect("a", true)
	})
}

// The same heartbeat, told again after a broken watch, renews nothing.
func TestBrokenWatchRenewsNothing(t *testing.T) {
	inBubble(t, func(w *world) {
		w.beat("a")
		for range 7 {
			w.pass(time.Second)
			w.conn.BreakWatches()
		}
		w.expect("a", false)
	})
}

// While the store is away nobody can renew a lease; nobody is called dead for
// that, neither during it nor right after it.
func TestStoreAway(t *testing.T) {
	inBubble(t, func(w *world) {
		w.pass(10*time.Second, "a", "b")
		w.conn.Pause()
		w.pass(60 * time.Second) // no beats: it is away for the nodes too
		w.expect("a", true)
		w.conn.Resume()
		w.pass(time.Second)
		w.expect("a", true)
		w.expect("b", true)
		w.pass(8*time.Second, "b")
		w.expect("a", false)
		w.expect("b", true)
	})
}

// The observer alone is cut off, and meanwhile a node dies: it takes a whole
// lease in contact to say so.
func TestObserverCutOff(t *testing.T) {
	inBubble(t, func(w *world) {
		w.pass(10*time.Second, "a", "b")
		w.conn.Pause()
		w.pass(60*time.Second, "b")
		w.conn.Resume()
		w.pass(2*time.Second, "b")
		w.expect("a", true)
		w.pass(8*time.Second, "b")
		w.expect("a", false)
		w.expect("b", true)
	})
}

// A watch that is stuck while requests pass must not make everybody dead.
func TestStuckWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := memory.New()
		defer data.Close()
		w := &world{t: t, data: data, conn: data}
		w.live = store.NewLiveness(stuckWatch{data.Nodes()}, slog.New(slog.DiscardHandler))
		w.beat("a")
		w.beat("b")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.live.Run(ctx) }()
		w.pass(30*time.Second, "a")
		w.expect("a", true)
		w.expect("b", false)
		cancel()
		<-done
	})
}

// stuckWatch delivers the state at the start and nothing after.
type stuckWatch struct {
	store.Objects[volume.NodeID, volume.Node]
}

func (s stuckWatch) Watch(ctx context.Context, _ volume.NodeID) (<-chan store.Event[volume.NodeID, volume.Node], error) {
	nodes, err := s.List(ctx)
	out := make(chan store.Event[volume.NodeID, volume.Node], len(nodes))
	for _, n := range nodes {
		out <- store.Event[volume.NodeID, volume.Node]{Kind: store.Put, Key: n.ID, Object: n}
	}
	context.AfterFunc(ctx, func() { close(out) })
	return out, err
}

// TestChangesAreLogged: each once, without anybody asking for the node.
func TestChangesAreLogged(t *testing.T) {
	inBubble(t, func(w *world) {
		said := func(away, back int) {
			t.Helper()
			synctest.Wait()
			if log := w.log.String(); strings.Count(log, "node is away") != away || strings.Count(log, "node is back") != back {
				t.Fatalf("want %d times away and %d times back:\n%s", away, back, log)
			}
		}
		w.pass(10*time.Second, "a")
		said(0, 0)
		w.pass(3 * lease)
		said(1, 0)
		w.beat("a")
		said(1, 1)
		w.put("a", true)
		said(2, 1)
	})
}

// A closed store ends Run, with an error: whoever runs it must know.
func TestStoreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := memory.New()
		live := store.NewLiveness(data.Nodes(), slog.New(slog.DiscardHandler))
		done := make(chan error, 1)
		go func() { done <- live.Run(t.Context()) }()
		synctest.Wait()
		if err := data.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, volume.ErrClosed) {
			t.Errorf("Run ended with %v", err)
		}
	})
}
