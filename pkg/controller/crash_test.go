package controller

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// crash lets calls of the store and of the agents pass until the n-th, at which
// the controller dies: that call is not made, or is made and its answer lost,
// or (a change of the store) is made much later. No call passes after it.
type crash struct {
	world *world
	at    int
	how   memory.Fault

	mu    sync.Mutex
	calls int // guarded by mu
	late  []func()
}

// next counts a call and says what becomes of it.
func (c *crash) next() memory.Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	switch {
	case c.calls < c.at:
		return memory.None
	case c.calls == c.at:
		return c.how
	}
	return memory.Before
}

func (c *crash) happened() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls >= c.at
}

var errDied = fmt.Errorf("the controller died: %w", volume.ErrUnavailable)

func (c *crash) agent(call func() error) error {
	switch c.next() {
	case memory.None:
		return call()
	case memory.After:
		_ = call()
	case memory.Late:
		c.mu.Lock()
		c.late = append(c.late, func() { _ = call() })
		c.mu.Unlock()
	}
	return errDied
}

func (c *crash) CreateReplica(ctx context.Context, addr string, r NewReplica) error {
	return c.agent(func() error { return c.world.CreateReplica(ctx, addr, r) })
}

func (c *crash) RetireReplica(ctx context.Context, addr string, o RetireReplica) error {
	return c.agent(func() error { return c.world.RetireReplica(ctx, addr, o) })
}

func (c *crash) DeleteReplica(ctx context.Context, addr string, id volume.ID, uid volume.UID) error {
	return c.agent(func() error { return c.world.DeleteReplica(ctx, addr, id, uid) })
}

func (c *crash) ListReplicas(ctx context.Context, addr string) (held []HeldReplica, err error) {
	err = c.agent(func() error { held, err = c.world.ListReplicas(ctx, addr); return err })
	return held, err
}

// settle lets the calls that were still under way at the crash arrive.
func (c *crash) settle(conn *memory.Store) {
	conn.Settle()
	c.mu.Lock()
	late := c.late
	c.late = nil
	c.mu.Unlock()
	for _, call := range late {
		call()
	}
}

// story is one call that meets a crash.
type story struct {
	name  string
	setup func(*testing.T, *world)
	call  func(*Controller) error
	// want is what the repeated call must return.
	want error
	// after checks the end state besides world.checkSettled.
	after func(*testing.T, *world)
	// alone: as after, when nobody repeats the call.
	alone func(*testing.T, *world)
}

func stories() []story {
	ctx := context.Background()
	create := func(c *Controller) error { _, err := c.Create(ctx, request("v", 3)); return err }
	remove := func(c *Controller) error { return c.Delete(ctx, volume.IDFor("v")) }
	existing := func(t *testing.T, w *world) { mustCreate(t, w.fresh(), request("v", 3)) }
	count := func(n int) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			if got := len(w.volumes()); got != n {
				t.Errorf("%d volumes are left, want %d", got, n)
			}
		}
	}
	atMost := func(n int) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			if got := len(w.volumes()); got > n {
				t.Errorf("%d volumes are left, want at most %d", got, n)
			}
		}
	}
	return []story{
		{name: "create", setup: func(*testing.T, *world) {}, call: create, after: count(1), alone: atMost(1)},
		{name: "create while a node hangs", setup: func(_ *testing.T, w *world) { w.node("n1", func(n *fakeNode) { n.hangs = true }) }, call: create, after: count(1), alone: atMost(1)},
		{name: "create while a pool refuses", setup: func(_ *testing.T, w *world) {
			w.node("n0", func(n *fakeNode) { n.refuses = volume.ErrNoSpace })
		}, call: create, after: count(1), alone: atMost(1)},
		{name: "create while two pools refuse", setup: func(_ *testing.T, w *world) {
			w.node("n0", func(n *fakeNode) { n.refuses = volume.ErrNoSpace })
			w.node("n2", func(n *fakeNode) { n.refuses = volume.ErrNoSpace })
		}, call: create, want: volume.ErrNoSpace, after: count(0), alone: count(0)},
		{name: "delete", setup: existing, call: remove, after: count(0), alone: atMost(1)},
		{name: "delete held by a dead node", setup: func(t *testing.T, w *world) {
			existing(t, w)
			w.edit(volume.IDFor("v"), heldBy("n2"))
			w.node("n2", func(n *fakeNode) { n.stale = true }) // one of the replicas is there
		}, call: remove, after: count(0)},
		{name: "delete and create again", setup: existing, call: func(c *Controller) error {
			if err := remove(c); err != nil {
				return err
			}
			return create(c)
		}, after: count(1)},
		{name: "expand", setup: existing, call: func(c *Controller) error {
			_, err := c.Expand(ctx, volume.IDFor("v"), 2*gib)
			return err
		}, after: func(t *testing.T, w *world) {
			if v := w.volumes()[0]; v.Spec.SizeBytes != 2*gib {
				t.Errorf("size wanted is %d", v.Spec.SizeBytes)
			}
		}, alone: count(1)},
	}
}

// returned brings all nodes back, and ends what is wrong with them.
func (w *world) returned() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		n.stale, n.hangs, n.refuses = false, false, nil
	}
}

// TestCrashAnywhereAndRepeat kills the controller at each of its calls in turn,
// and lets another one repeat the call, or nobody. In the end nothing is
// half-done and no replica is left over.
func TestCrashAnywhereAndRepeat(t *testing.T) {
	total := 0
	for _, s := range stories() {
		for how, name := range map[memory.Fault]string{memory.Before: "before", memory.After: "after", memory.Late: "late"} {
			for _, repeated := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/repeated=%v", s.name, name, repeated), func(t *testing.T) {
					for n := 1; crashOnce(t, s, &crash{at: n, how: how}, repeated); n++ {
						total++
						if n > 500 {
							t.Fatal("the call never ends")
						}
					}
				})
			}
		}
	}
	t.Logf("%d crashes", total)
}

// crashOnce reports whether the crash came before the call was through.
func crashOnce(t *testing.T, s story, dying *crash, repeated bool) bool {
	w := newWorld(t, 4)
	s.setup(t, w)
	conn := w.store.Connect()
	dying.world = w
	conn.SetFault(func(memory.Op) memory.Fault { return dying.next() })
	err := s.call(w.controller(conn, dying))
	if !dying.happened() {
		wantErr(t, err, s.want)
	}
	if repeated {
		wantErr(t, s.call(w.fresh()), s.want)
	}
	dying.settle(conn)
	if repeated {
		wantErr(t, s.call(w.fresh()), s.want)
	}
	w.returned()
	w.reconcile(w.fresh())
	w.checkSettled()
	switch {
	case repeated:
		s.after(t, w)
	case s.alone != nil:
		s.alone(t, w)
	}
	if t.Failed() {
		t.Fatalf("after a crash at call %d", dying.at)
	}
	return dying.happened()
}
