package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestControllersAtOnce lets several controllers work on the same few names,
// with nodes that hang and answers of the store that are lost, while all of them
// reconcile. In the end nothing is half-done and no replica is left over.
func TestControllersAtOnce(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			runAtOnce(t, seed)
		})
	}
}

func runAtOnce(t *testing.T, seed uint64) {
	w := newWorld(t, 4)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			conn := w.store.Connect()
			c := w.controller(conn, w)
			r := newReconciler(c)
			for range 25 {
				oneStep(t, w, stepper{c: c, conn: conn, r: r, rnd: rnd})
			}
		})
	}
	wg.Wait()
	w.returned()
	w.reconcile(w.fresh())
	w.checkSettled()
}

type stepper struct {
	c    *Controller
	conn *memory.Store
	r    *reconciler
	rnd  *rand.Rand
}

func oneStep(t *testing.T, w *world, s stepper) {
	ctx := context.Background()
	name := fmt.Sprintf("v%d", s.rnd.IntN(2))
	node := fmt.Sprintf("n%d", s.rnd.IntN(4))
	var err error
	switch s.rnd.IntN(8) {
	case 0, 1, 2:
		_, err = s.c.Create(ctx, request(name, 2))
	case 3:
		err = s.c.Delete(ctx, volume.IDFor(name))
	case 4:
		_, err = s.c.Expand(ctx, volume.IDFor(name), gib+int64(s.rnd.IntN(4))*gib)
	case 5:
		err = s.r.pass(ctx)
	case 6:
		hangs := s.rnd.IntN(2) == 0
		w.node(node, func(n *fakeNode) { n.hangs = hangs })
	case 7:
		s.conn.FailNext(memory.After)
		w.now.Advance(s.c.opt.TombstoneGrace / 4)
	}
	if err == nil {
		return
	}
	for _, fine := range []error{volume.ErrUnavailable, volume.ErrNotFound, volume.ErrPending} {
		if errors.Is(err, fine) {
			return
		}
	}
	t.Errorf("%v", err)
}

// TestCreateAtOnce: all callers of one name get the same volume.
func TestCreateAtOnce(t *testing.T) {
	for range 20 {
		w := newWorld(t, 4)
		var wg sync.WaitGroup
		uids := make([]volume.UID, 6)
		for i := range uids {
			wg.Go(func() {
				v, err := w.fresh().Create(context.Background(), request("v", 3))
				if err != nil {
					t.Error(err)
				}
				uids[i] = v.UID
			})
		}
		wg.Wait()
		for _, u := range uids {
			if u != uids[0] {
				t.Errorf("callers got %v", uids)
			}
		}
		w.checkSettled()
	}
}
