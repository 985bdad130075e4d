package pace

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Many volumes of one node copy: never more than allowed at once, none starves
// among equals, and the limit holds for all of them together.
func TestSchedulerSharesANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 50 << 20
		s := New(Options{Volumes: 2, BytesPerSecond: limit})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var atOnce, worst, sum atomic.Int64
		var got [6]atomic.Int64
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				step := Step{Volume: volume.ID(fmt.Sprint("v", i)), InSync: 2}
				if i < 2 {
					step.InSync = 1
				}
				turn := s.Ask(step)
				for {
					n, err := turn.Wait(ctx)
					if err != nil {
						turn.Done(0)
						return
					}
					worst.Store(max(worst.Load(), atOnce.Add(1)))
					time.Sleep(time.Duration(n) * time.Second / (30 << 20)) // a volume alone makes 30 MiB/s
					sum.Add(n)
					got[i].Add(n)
					atOnce.Add(-1)
					if i < 2 && got[i].Load() > 100<<20 {
						turn.Done(n)
						return // in sync
					}
					next := s.Ask(step)
					turn.Done(n)
					turn = next
				}
			})
		}
		all.Wait()
		if worst.Load() != 2 {
			t.Errorf("%d steps at once", worst.Load())
		}
		if rate := float64(sum.Load()) / 20; math.Abs(rate/limit-1) > 0.1 {
			t.Errorf("%.1f MiB/s, the limit is 50", rate/(1<<20))
		}
		for i := range got {
			want := int64(100 << 20) // those in danger get all they need
			if i == 4 || i == 5 {
				want = 0
			}
			if n := got[i].Load(); n < want || want == 0 && n != 0 {
				t.Errorf("volume %d got %d MiB, want %d", i, n>>20, want>>20)
			}
		}
		if s.Window() != nil || len(s.plan.entries) != 0 {
			t.Error("requests are still watched with nothing to copy")
		}
	})
}

// Whoever gives up while it waits, or with its turn not used, leaves nothing
// behind.
func TestSchedulerGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Volumes: 1})
		unused, waits := s.Ask(Step{Volume: "a", InSync: 1}), s.Ask(Step{Volume: "b", InSync: 1})
		if _, err := unused.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := waits.Wait(ctx); err == nil {
			t.Fatal("two volumes have a turn")
		}
		waits.Done(0)
		waits.Done(0)
		last := s.Ask(Step{Volume: "c", InSync: 2})
		began := time.Now()
		time.AfterFunc(time.Second, func() { unused.Done(0) })
		if _, err := last.Wait(t.Context()); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		last.Done(0)
		if len(s.plan.entries) != 0 {
			t.Errorf("%d volumes are left", len(s.plan.entries))
		}
	})
}

// A turn that is never given back is not waited for without end.
func TestSchedulerStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Volumes: 1})
		stuck, waits := s.Ask(Step{Volume: "a", InSync: 1}), s.Ask(Step{Volume: "b", InSync: 2})
		if _, err := stuck.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := waits.Wait(t.Context()); err != nil || time.Since(began) > stuckAfter+time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		stuck.Done(0)
		waits.Done(0)
	})
}

// While there is a resync the requests of the data path are told apart, and else
// not looked at.
func TestSchedulerWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		if s.Window() != nil || (*Scheduler)(nil).Window() != nil {
			t.Fatal("requests are watched with nothing to copy")
		}
		turn := s.Ask(Step{Volume: "a", InSync: 1})
		if s.Window() != &s.pausing {
			t.Fatal("a resync does not begin with a look at the applications")
		}
		if _, err := turn.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		w := s.Window()
		if w != &s.copying {
			t.Fatal("a step does not count as copying")
		}
		w.Begin()
		w.End(Flush, 3*time.Second)
		if c := s.copying.read(); c.began != 1 || c.n[Flush] != 1 || c.took[Flush] != 3 {
			t.Errorf("counted %+v", c)
		}
		turn.Done(0)
		if s.Window() != nil {
			t.Error("requests are watched after the resync")
		}
		w.End(Read, time.Second) // one that comes late
	})
}
