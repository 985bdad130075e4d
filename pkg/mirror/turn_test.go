package mirror

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pace"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A resync that waits for its turn is in nobody's way: writes to all of the volume
// go on, and the replica, which gets them, is not given up.
func TestResyncWaitsForItsTurn(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	s := pace.New(pace.Options{Volumes: 1})
	other := s.Ask(pace.Step{Volume: "other", InSync: 1})
	if _, err := other.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := w.options("a")
	o.Pace = s
	w.reps["b"].set(func() { w.reps["b"].away = true })
	ctx, cancel := context.WithTimeout(context.Background(), w.wait)
	defer cancel()
	m, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if err := block.WriteAt(m, pattern(1, mib), 0); err != nil {
		t.Fatal(err)
	}
	w.reps["b"].set(func() { w.reps["b"].away = false })
	w.eventually("b waits for its turn", func() bool { return m.resyncs.waits(1) })
	began := time.Now()
	for n := 0; time.Since(began) < 2*o.Patience; n++ {
		if err := block.WriteAt(m, pattern(byte(n), 64<<10), int64(n%16)*(64<<10)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 4*o.Patience {
			t.Fatalf("write %d ended after %v", n, took)
		}
	}
	if !m.resyncs.waits(1) || w.state("b") == volume.InSync {
		t.Errorf("b is %s, and does not wait for its turn any more", w.state("b"))
	}
	other.Done(0)
	w.eventually("b is in sync", func() bool { return w.state("b") == volume.InSync })
	if s.Window() != nil {
		t.Error("a turn was not given back")
	}
	w.close(m)
	w.equalReplicas()
}

// A mirror that ends, or loses the replica, gives back what it has asked for.
func TestTurnsAreGivenBack(t *testing.T) {
	for name, end := range map[string]func(*world, *Mirror){
		"closed": func(w *world, m *Mirror) { w.close(m) },
		"crash":  func(_ *world, m *Mirror) { _ = m.Close() },
		"replica lost": func(w *world, m *Mirror) {
			w.reps["b"].set(func() { w.reps["b"].away = true })
			w.reps["b"].kill()
			w.eventually("the wait has ended", func() bool { return !m.resyncs.waits(1) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mib, "a", "b")
			s := pace.New(pace.Options{Volumes: 1})
			other := s.Ask(pace.Step{Volume: "other", InSync: 1})
			if _, err := other.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			o := w.options("a")
			o.Pace = s
			w.reps["b"].set(func() { w.reps["b"].away = true })
			m, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.Close() })
			if err := block.WriteAt(m, pattern(1, mib), 0); err != nil {
				t.Fatal(err)
			}
			w.reps["b"].set(func() { w.reps["b"].away = false })
			w.eventually("b waits for its turn", func() bool { return m.resyncs.waits(1) })
			end(w, m)
			other.Done(0)
			w.eventually("nobody has, or waits for, a turn", func() bool { return s.Window() == nil })
		})
	}
}
