package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// world is a store and some replicas in memory, on which mirrors are opened.
type world struct {
	t     testing.TB
	store *memory.Store
	id    volume.ID
	reps  map[volume.NodeID]*replicaSim
	wait  time.Duration // for anything
}

func newWorld(t testing.TB, size int64, nodes ...volume.NodeID) *world {
	w := &world{t: t, store: memory.New(), id: volume.IDFor(t.Name()), reps: map[volume.NodeID]*replicaSim{}, wait: 30 * time.Second}
	v := volume.Volume{ID: w.id, UID: "11111111-2222-3333-4444-555555555555"}
	v.Spec = volume.Spec{Name: t.Name(), SizeBytes: size, Params: volume.Params{Replicas: len(nodes)}}
	v.Status = volume.Status{Phase: volume.PhaseReady, SizeBytes: size, Clean: true}
	for _, n := range nodes {
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{Node: n, State: volume.InSync})
		w.reps[n] = &replicaSim{node: n, disk: blocktest.NewMemory(size)}
	}
	if _, err := w.store.Volumes().Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return w
}

// options are quick ones: a silent leg is given up after 400 ms.
func (w *world) options(node volume.NodeID) Options {
	return Options{
		Volume: w.id, Node: node, Volumes: w.store.Volumes(), Replicas: w,
		Logger:  slog.New(slog.DiscardHandler),
		MayTake: func(volume.Volume) error { return nil },
		Tick:    10 * time.Millisecond, Patience: 400 * time.Millisecond, Reopen: 20 * time.Millisecond, Settle: 30 * time.Millisecond, CopyBytes: 64 << 10,
		OpenTimeout: 2 * time.Second,
	}
}

func (w *world) open(node volume.NodeID) *Mirror {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), w.wait)
	defer cancel()
	m, err := Open(ctx, w.options(node))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

func (w *world) close(m *Mirror) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), w.wait)
	defer cancel()
	if err := m.CloseClean(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) volume() volume.Volume {
	w.t.Helper()
	v, err := w.store.Volumes().Get(context.Background(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// eventually polls until ok says so.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(w.wait); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited %v for: %s", w.wait, what)
		}
	}
}

func (w *world) state(node volume.NodeID) volume.ReplicaState {
	v := w.volume()
	return v.Status.Replicas[v.ReplicaOn(node)].State
}

// Open implements Replicas.
func (w *world) Open(ctx context.Context, q OpenRequest) (Leg, error) {
	return w.reps[q.Replica.Node].open(ctx, q)
}

// replicaSim is one replica: its disk outlives sessions and "processes".
type replicaSim struct {
	node volume.NodeID
	disk *blocktest.Memory

	// Hooks, set before a mirror is opened or under mu: called at the start of an
	// opening, and by every Submit.
	opening    func(context.Context)
	submitting func(*block.IO)

	opens   sync.Mutex // one opening at a time; taken before mu
	mu      sync.Mutex
	away    bool
	full    bool
	boot    int // how often the node has forgotten
	epoch   volume.Epoch
	session volume.Session
	leg     *legSim
	track   trackSim
}

func (r *replicaSim) open(ctx context.Context, q OpenRequest) (Leg, error) {
	var opening func(context.Context)
	r.set(func() { opening = r.opening })
	if opening != nil {
		opening(ctx)
	}
	r.opens.Lock()
	defer r.opens.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.away:
		return nil, fmt.Errorf("%s is away: %w", r.node, volume.ErrUnavailable)
	case q.Epoch < r.epoch, q.Epoch == r.epoch && q.Session <= r.session:
		return nil, fmt.Errorf("%s has seen epoch %d session %d: %w", r.node, r.epoch, r.session, volume.ErrFenced)
	}
	r.epoch, r.session = q.Epoch, q.Session
	if old := r.leg; old != nil {
		old.end(volume.ErrFenced)
		r.mu.Unlock() // what is under way may ask for it
		old.inflight.Wait()
		r.mu.Lock()
		if r.away {
			return nil, fmt.Errorf("%s went away: %w", r.node, volume.ErrUnavailable)
		}
	}
	if r.disk.Size() < q.Size {
		r.disk.Grow(q.Size)
	}
	r.leg = &legSim{r: r, boot: r.boot, onFail: q.OnFail}
	r.track.opened()
	return r.leg, nil
}

// kill ends the replica's process: its session is gone, and it can't be reached
// until it is started again.
func (r *replicaSim) kill() {
	r.mu.Lock()
	r.away = true
	leg := r.leg
	r.mu.Unlock()
	if leg != nil {
		leg.end(volume.ErrUnavailable)
		leg.onFail(errors.New("connection reset"))
	}
}

func (r *replicaSim) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// legSim is one session.
type legSim struct {
	r        *replicaSim
	boot     int // the node's, when the session was opened
	onFail   func(error)
	mu       sync.Mutex
	ended    error
	inflight sync.WaitGroup
}

func (l *legSim) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended == nil {
		l.ended = fmt.Errorf("session ended: %w", err)
	}
}

// Incarnation is that of the replica's node.
func (l *legSim) Incarnation() volume.Incarnation {
	return volume.Incarnation(fmt.Sprint("boot ", l.boot))
}

func (l *legSim) Size() int64 { return l.r.disk.Size() }

func (l *legSim) Submit(io *block.IO) {
	l.mu.Lock()
	if l.ended != nil {
		err := l.ended
		l.mu.Unlock()
		io.Done(io, err)
		return
	}
	l.inflight.Add(1)
	l.mu.Unlock()
	if l.r.submitting != nil {
		l.r.submitting(io)
	}
	var full bool
	l.r.set(func() {
		full = l.r.full
		if io.Op != block.OpRead && io.Op != block.OpFlush {
			l.r.track.intend(io)
		}
	})
	if full && io.Op == block.OpWrite {
		l.inflight.Done()
		io.Done(io, volume.ErrNoSpace)
		return
	}
	done, user := io.Done, io.User
	io.User = nil
	io.Done = func(io *block.IO, err error) {
		io.User, io.Done = user, done
		l.mu.Lock()
		if l.ended != nil {
			err = l.ended // the answer did not make it
		}
		l.mu.Unlock()
		l.inflight.Done()
		done(io, err)
	}
	l.r.disk.Submit(io)
}

func (l *legSim) Grow(_ context.Context, size int64) error {
	l.r.disk.Grow(size)
	return nil
}

func (l *legSim) Close() error {
	l.end(volume.ErrClosed)
	l.inflight.Wait()
	return nil
}
