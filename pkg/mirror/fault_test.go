package mirror

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// An opening may be cancelled at any moment: it returns, and once the store can
// be reached nothing of it is left there.
func TestOpenCancelled(t *testing.T) {
	for name, moment := range map[string]func(w *world, cancel func()){
		"while the epoch is taken": func(w *world, cancel func()) {
			w.store.SetFault(func(op memory.Op) memory.Fault {
				if op.Verb == memory.Update {
					cancel()
				}
				return memory.None
			})
		},
		"while the epoch's answer is lost": func(w *world, cancel func()) {
			w.store.SetFault(func(op memory.Op) memory.Fault {
				if op.Verb != memory.Update {
					return memory.None
				}
				cancel()
				w.store.SetFault(nil)
				return memory.After
			})
		},
		"while replicas are opened": func(w *world, cancel func()) {
			w.reps["b"].opening = func(ctx context.Context) { cancel(); <-ctx.Done() }
		},
		"while states are recorded": func(w *world, cancel func()) {
			w.reps["b"].away = true
			updates := 0
			w.store.SetFault(func(op memory.Op) memory.Fault {
				if op.Verb == memory.Update {
					if updates++; updates == 2 {
						cancel()
						return memory.After
					}
				}
				return memory.None
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mib, "a", "b")
			ctx, cancel := context.WithTimeout(t.Context(), w.wait)
			defer cancel()
			moment(w, cancel)
			if m, err := Open(ctx, w.options("a")); err == nil { // it was quicker
				w.close(m)
			}
			if v := w.volume(); v.Status.Holder != nil || !v.Status.Clean || v.CountState(volume.InSync) != 2 {
				t.Errorf("left behind: %+v", v.Status)
			}
		})
	}
}

// The store goes away in the middle of an opening: it ends all the same, and the
// volume can be opened when the store is back.
func TestOpenWhileTheStoreIsAway(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	w.reps["b"].opening = func(context.Context) { w.store.Pause() }
	w.reps["b"].away = true // so there is something to record
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, w.options("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the deadline", err)
	}
	w.store.Resume()
	w.reps["b"].set(func() { w.reps["b"].opening, w.reps["b"].away = nil, false })
	w.close(w.open("a"))
}

// The answer to the taking of the epoch is lost, and the store with it: the lock
// that may be in the store is given back when it can be.
func TestTakeInDoubtIsGivenBack(t *testing.T) {
	for name, fault := range map[string]memory.Fault{"landed": memory.After, "lands late": memory.Late, "never lands": memory.Before} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mib, "a")
			gets := 0
			w.store.SetFault(func(op memory.Op) memory.Fault {
				switch {
				case op.Verb == memory.Get:
					if gets++; gets == 3 { // Open's, Take's, and the one after the lost answer
						return memory.Before
					}
				case op.Verb == memory.Update && gets == 2:
					return fault
				}
				return memory.None
			})
			ctx, cancel := context.WithTimeout(t.Context(), w.wait)
			defer cancel()
			if _, err := Open(ctx, w.options("a")); !errors.Is(err, volume.ErrUnavailable) {
				t.Fatalf("got %v, want ErrUnavailable", err)
			}
			w.store.Settle()
			if v := w.volume(); v.Status.Holder != nil || !v.Status.Clean {
				t.Errorf("left behind: %+v", v.Status)
			}
		})
	}
}

// A read that is sent again, because its first replica was given up, does not
// share its buffer with what that replica still does.
func TestReadSentAgain(t *testing.T) {
	w := newWorld(t, mib, "b", "c") // none of them local
	if err := block.WriteAt(w.reps["b"].disk, pattern(9, 4096), 0); err != nil {
		t.Fatal(err)
	}
	hold := func(io *block.IO) bool { return io.Op == block.OpRead }
	w.reps["b"].disk.Hold(hold)
	m := w.open("x")
	got := block.Alloc(4096)
	done := make(chan error, 1)
	go func() { done <- block.ReadAt(m, got, 0) }()
	ctx, cancel := context.WithTimeout(t.Context(), w.wait)
	defer cancel()
	if err := w.reps["b"].disk.WaitHeld(ctx, 1); err != nil {
		t.Fatal(err)
	}
	w.reps["b"].kill()
	w.eventually("the other replica was read", func() bool { return w.reps["c"].disk.Count(block.OpRead) > 0 })
	w.reps["b"].disk.Hold(nil)
	w.reps["b"].disk.Release(-1)
	if err := <-done; err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Errorf("read %v... (%v), want what the replica that answered has", got[:4], err)
	}
}

// A slow local disk must not hold up the goroutine that reads another replica's
// answers.
func TestLocalDiskDoesNotBlockOthers(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	gate := make(chan struct{})
	w.reps["a"].submitting = func(io *block.IO) {
		if io.Op == block.OpWrite && io.Data[0] == 2 {
			<-gate
		}
	}
	m := w.open("a")
	w.reps["b"].disk.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite && io.Data[0] == 1 })
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- block.WriteAt(m, pattern(1, 4096), 0) }()
	ctx, cancel := context.WithTimeout(t.Context(), w.wait)
	defer cancel()
	if err := w.reps["b"].disk.WaitHeld(ctx, 1); err != nil {
		t.Fatal(err)
	}
	io := &block.IO{Op: block.OpWrite, Len: 4096, Data: pattern(2, 4096), Done: func(_ *block.IO, err error) { second <- err }}
	m.Submit(io) // waits for the first
	released := make(chan struct{})
	go func() { // brings the answer, and with it the second write's turn
		w.reps["b"].disk.Release(-1)
		close(released)
	}()
	select {
	case <-released:
	case <-ctx.Done():
		t.Error("the bringer of a remote answer waits for the local disk")
	}
	close(gate)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Fatal(err)
	}
}

// What a watch brings late is not held against the mirror.
func TestObserveLate(t *testing.T) {
	w := newWorld(t, mib, "a")
	m := w.open("a")
	before := w.volume()
	before.UID, before.Status.Epoch = "99999999-2222-3333-4444-555555555555", 7 // the volume that had this name before
	m.Observe(before)
	older := w.volume()
	older.Status.Epoch--
	m.Observe(older)
	if err := m.Err(); err != nil {
		t.Fatalf("stopped: %v", err)
	}
	w.close(m)
	newer := w.volume()
	newer.Status.Epoch++
	m = w.open("a")
	newer.Status.Epoch = m.Epoch() + 1
	m.Observe(newer)
	if err := m.Err(); !errors.Is(err, volume.ErrFenced) {
		t.Errorf("after a newer epoch: %v, want ErrFenced", err)
	}
}
