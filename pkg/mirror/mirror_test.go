package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const mib = 1 << 20

func TestConformance(t *testing.T) {
	for _, nodes := range [][]volume.NodeID{{"a"}, {"a", "b", "c"}} {
		t.Run(fmt.Sprint(len(nodes)), func(t *testing.T) {
			n := 0
			blocktest.Run(t, func(t *testing.T) block.Device {
				n++
				return newWorld(t, 4*mib, nodes...).open("a")
			}, blocktest.Options{})
		})
	}
}

// pattern fills a block so that every write is recognised.
func pattern(seed byte, n int) []byte { return bytes.Repeat([]byte{seed}, n) }

func TestWriteReachesEveryReplica(t *testing.T) {
	w := newWorld(t, mib, "a", "b", "c")
	m := w.open("a")
	if err := block.WriteAt(m, pattern(7, 8192), 4096); err != nil {
		t.Fatal(err)
	}
	for n, r := range w.reps {
		if !bytes.Equal(r.disk.Bytes()[4096:12288], pattern(7, 8192)) {
			t.Errorf("replica %s lacks the write", n)
		}
	}
	if v := w.volume(); v.Status.Clean || v.Status.Holder == nil || v.Status.Epoch != 1 {
		t.Errorf("while open: %+v", v.Status)
	}
	w.close(m)
	if v := w.volume(); !v.Status.Clean || v.Status.Holder != nil {
		t.Errorf("after a clean close: %+v", v.Status)
	}
}

// A replica that was lost is Outdated in the store before anything is
// acknowledged without it.
func TestLostReplicaIsRecordedFirst(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.open("a")
	w.store.Pause()
	w.reps["b"].kill()
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(m, pattern(1, 4096), 0) }()
	select {
	case err := <-done:
		t.Fatalf("acknowledged (%v) while the store could not know", err)
	case <-time.After(100 * time.Millisecond):
	}
	w.store.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := w.state("b"); s != volume.Outdated {
		t.Fatalf("acknowledged while the store calls the lost replica %s", s)
	}
	if c, _ := func() (volume.Condition, bool) { v := w.volume(); return v.Condition(volume.ConditionDegraded) }(); !c.Status {
		t.Error("the volume is not called degraded")
	}
}

func TestLostAnswersOfTheStore(t *testing.T) {
	for name, fault := range map[string]memory.Fault{"before": memory.Before, "after": memory.After, "late": memory.Late} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mib, "a", "b")
			w.store.FailNext(fault) // the epoch
			m := w.open("a")
			w.store.FailNext(fault, fault) // the drop
			w.reps["b"].kill()
			if err := block.WriteAt(m, pattern(1, 4096), 0); err != nil {
				t.Fatal(err)
			}
			w.store.Settle() // late ones meet a newer version
			if s := w.state("b"); s != volume.Outdated {
				t.Fatalf("the store calls the lost replica %s", s)
			}
			w.store.FailNext(fault) // the release
			w.close(m)
			if v := w.volume(); v.Status.Holder != nil || !v.Status.Clean {
				t.Errorf("after close: %+v", v.Status)
			}
		})
	}
}

func TestSilentReplicaIsGivenUp(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.open("a")
	w.reps["b"].disk.Hold(func(*block.IO) bool { return true })
	t.Cleanup(func() { w.reps["b"].disk.Hold(nil); w.reps["b"].disk.Release(0) })
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(m, pattern(1, 4096), 0) }()
	w.eventually("the silent replica is Outdated", func() bool { return w.state("b") == volume.Outdated })
	w.reps["b"].disk.Hold(nil)
	w.reps["b"].disk.Release(0)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A new holder fences the old one: what the old one does afterwards is neither
// acknowledged nor seen.
func TestTakeover(t *testing.T) {
	w := newWorld(t, mib, "a", "b", "c")
	old := w.open("a")
	if err := block.WriteAt(old, pattern(1, 4096), 0); err != nil {
		t.Fatal(err)
	}
	now := w.open("b")
	if err := block.WriteAt(old, pattern(2, 4096), 0); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("the old holder's write: %v, want ErrFenced", err)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(now, got, 0); err != nil || !bytes.Equal(got, pattern(1, 4096)) {
		t.Fatalf("the new holder reads %x (%v), want what was acknowledged", got[:4], err)
	}
	if err := block.ReadAt(old, got, 0); !errors.Is(err, volume.ErrFenced) {
		t.Errorf("the old holder's read: %v, want ErrFenced", err)
	}
	if now.Epoch() != 2 {
		t.Errorf("epoch %d, want 2", now.Epoch())
	}
}

// After an unclean close the replicas stay InSync, and become equal where their
// intent bits say that they may differ.
func TestUncleanCloseCorrects(t *testing.T) {
	w := newWorld(t, mib, "a", "b", "c")
	m := w.open("a")
	if err := block.WriteAt(m, pattern(3, 65536), 65536); err != nil {
		t.Fatal(err)
	}
	_ = m.Close() // as a crash
	// The crash left a write on one replica only.
	w.reps["c"].set(func() { w.reps["c"].track.intend(&block.IO{Off: 500 * 1024, Len: 4096}) })
	if err := block.WriteAt(w.reps["c"].disk, pattern(9, 4096), 500*1024); err != nil {
		t.Fatal(err)
	}
	m = w.open("b")
	if v := w.volume(); v.CountState(volume.InSync) != 3 {
		t.Errorf("the replicas do not stay in sync: %+v", v.Status.Replicas)
	}
	w.eventually("all regions are corrected", func() bool { return !strings.Contains(m.String(), "dirty") })
	w.close(m)
	w.equalReplicas()
	if n := w.reps["a"].disk.Count(block.OpWrite) + w.reps["c"].disk.Count(block.OpWrite); n > 8 {
		t.Errorf("%d writes to correct what one write left behind", n)
	}
}

func (w *world) equalReplicas() {
	w.t.Helper()
	v := w.volume()
	var first *replicaSim
	for _, r := range v.Status.Replicas {
		if r.State != volume.InSync {
			continue
		}
		sim := w.reps[r.Node]
		if first == nil {
			first = sim
			continue
		}
		if !bytes.Equal(sim.disk.Bytes(), first.disk.Bytes()) {
			w.t.Errorf("replicas %s and %s are InSync and differ", first.node, sim.node)
		}
	}
}

func TestFullPoolPausesWrites(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.open("a")
	w.reps["b"].set(func() { w.reps["b"].full = true })
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(m, pattern(5, 4096), 0) }()
	paused := func() bool { v := w.volume(); c, _ := v.Condition(volume.ConditionWritesPaused); return c.Status }
	w.eventually("the condition says that writes wait", paused)
	if err := block.ReadAt(m, make([]byte, 4096), 65536); err != nil {
		t.Errorf("a read while writes wait: %v", err)
	}
	w.reps["b"].set(func() { w.reps["b"].full = false })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.eventually("the condition is over", func() bool { return !paused() })
	w.close(m)
	w.equalReplicas()
}

func TestGrow(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.open("a")
	v := w.volume()
	v.Spec.SizeBytes = 2 * mib
	if _, err := w.store.Volumes().Update(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	m.Observe(v)
	w.eventually("the mirror serves the new size", func() bool { return m.Size() == 2*mib })
	if err := block.WriteAt(m, pattern(1, 4096), 2*mib-4096); err != nil {
		t.Fatal(err)
	}
	if got := w.volume().Status.SizeBytes; got != 2*mib {
		t.Errorf("the store says %d", got)
	}
	w.reps["b"].kill()
	w.eventually("the lost replica is Outdated", func() bool { return w.state("b") == volume.Outdated })
	ctx, cancel := context.WithTimeout(t.Context(), w.wait)
	defer cancel()
	if err := m.Grow(ctx, 3*mib); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("growing with a replica away: %v, want ErrPrecondition", err)
	}
}

// Who asks while a growth is under way is answered by it, or by the next.
func TestGrowByManyAtOnce(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.open("a")
	ctx, cancel := context.WithTimeout(t.Context(), w.wait)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 12 {
		size := int64(2+i%4) * mib
		wg.Go(func() {
			if err := m.Grow(ctx, size); err != nil || m.Size() < size {
				t.Errorf("growing to %d: %v, serves %d", size, err, m.Size())
			}
		})
	}
	wg.Wait()
}

func TestOpenLeavesNothingOnFailure(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	for _, r := range w.reps {
		r.away = true
	}
	ctx, cancel := context.WithTimeout(t.Context(), w.wait)
	defer cancel()
	if _, err := Open(ctx, w.options("a")); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	if v := w.volume(); v.Status.Holder != nil || !v.Status.Clean || v.CountState(volume.InSync) != 2 {
		t.Errorf("left behind: %+v", v.Status)
	}
	w.reps["b"].away = false
	w.reps["b"].epoch = 100 // the store went back in time
	_, err := Open(ctx, w.options("a"))
	if !errors.Is(err, volume.ErrFenced) && !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

// TestChaos runs writers and readers over a mirror whose replicas are killed,
// started again and filled up, whose store loses answers, and which is itself
// crashed and opened elsewhere. Every read must return the last acknowledged
// write of its block, or one that was under way; in the end all InSync replicas
// are equal.
func TestChaos(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { chaos(t, seed) })
	}
}

func chaos(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	nodes := []volume.NodeID{"a", "b", "c"}
	w := newWorld(t, mib, nodes...)
	m := w.open("a")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var cur sync.RWMutex // held for writing while the mirror is exchanged
	var wg sync.WaitGroup
	const writers, blocks = 4, 16
	for i := range writers {
		r := rand.New(rand.NewPCG(seed, uint64(i+2)))
		wg.Go(func() {
			history := make([]register, blocks)
			for ctx.Err() == nil {
				b := r.IntN(blocks)
				off := int64((b*writers + i) * 4096)
				cur.RLock()
				dev := m
				if r.IntN(3) > 0 {
					history[b].write(t, dev, off, byte(1+r.IntN(255)))
				} else {
					history[b].read(t, dev, off)
				}
				if r.IntN(10) == 0 {
					_ = block.Flush(dev) // its failure shows as the mirror's end
				}
				cur.RUnlock()
			}
		})
	}
	for range 40 {
		time.Sleep(time.Duration(rng.IntN(15)) * time.Millisecond)
		r := w.reps[nodes[rng.IntN(3)]]
		switch rng.IntN(8) {
		case 0, 1:
			v := w.volume()
			if v.CountState(volume.InSync) == 3 {
				r.kill()
			}
		case 2, 3:
			for _, r := range w.reps {
				r.set(func() { r.away = false })
			}
		case 4:
			r.set(func() { r.full = true })
		case 5:
			for _, r := range w.reps {
				r.set(func() { r.full = false })
			}
		case 6:
			w.store.FailNext(memory.Fault(1 + rng.IntN(3)))
		case 7:
			for _, r := range w.reps {
				r.set(func() { r.away, r.full = false, false })
			}
			next := w.options(nodes[rng.IntN(3)])
			old := m
			if rng.IntN(2) == 0 {
				_ = old.Close() // always nil: it ends as a crash would
			}
			cur.Lock()
			octx, ocancel := context.WithTimeout(ctx, w.wait)
			now, err := Open(octx, next)
			ocancel()
			if err != nil {
				cur.Unlock()
				t.Fatal(err)
			}
			m = now
			cur.Unlock()
			_ = old.Close()
		}
	}
	for _, r := range w.reps {
		r.set(func() { r.away, r.full = false, false })
	}
	cancel()
	wg.Wait()
	w.store.Settle()
	if m.Err() != nil { // all replicas were killed at once: nobody was left to serve
		w.close(m)
		m = w.open("a")
	}
	w.eventually("all replicas are in sync", func() bool { v := w.volume(); return v.CountState(volume.InSync) == 3 })
	w.close(m)
	w.equalReplicas()
}

// register is what one 4 KiB block may read as.
type register struct {
	may []byte // the last acknowledged value, and those of writes that failed since
}

func (r *register) write(t *testing.T, d block.Device, off int64, val byte) {
	if len(r.may) == 0 {
		r.may = []byte{0}
	}
	if err := block.WriteAt(d, pattern(val, 4096), off); err != nil {
		r.may = append(r.may, val) // it may have happened
		return
	}
	r.may = []byte{val}
}

func (r *register) read(t *testing.T, d block.Device, off int64) {
	if len(r.may) == 0 {
		r.may = []byte{0}
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(d, got, off); err != nil {
		return // the mirror was ended
	}
	if !bytes.Equal(got, pattern(got[0], 4096)) || !bytes.Contains(r.may, got[:1]) {
		t.Errorf("block at %d reads %d, may be %v", off, got[0], r.may)
	}
	r.may = []byte{got[0]} // never back
}

func BenchmarkWrite4K(b *testing.B) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprint("replicas", n), func(b *testing.B) {
			w := newWorld(b, 4*mib, []volume.NodeID{"a", "b", "c"}[:n]...)
			m := w.open("a")
			buf, done := block.Alloc(4096), make(chan error, 1)
			io := &block.IO{Op: block.OpWrite, Len: 4096, Data: buf, Done: func(_ *block.IO, err error) { done <- err }}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				io.Off = int64(i%1024) * 4096
				m.Submit(io)
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
