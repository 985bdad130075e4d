package mirror

import (
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A replica that returns gets what it missed, also what was written long before
// it returned, and what others got under another holder; nothing else moves.
func TestResyncCopiesOnlyWhatDiffers(t *testing.T) {
	w := newWorld(t, 16*mib, "a", "b")
	m := w.open("a")
	for off := int64(0); off < 16*mib; off += mib {
		if err := block.WriteAt(m, pattern(1, mib), off); err != nil {
			t.Fatal(err)
		}
	}
	cleared := func(n volume.NodeID) bool {
		var left int
		w.reps[n].set(func() { left = len(w.reps[n].track.current) + len(w.reps[n].track.previous) })
		return left == 0
	}
	w.eventually("the intent bits are cleared", func() bool { return cleared("a") && cleared("b") })
	w.reps["b"].kill()
	write := func(seed byte, off int64) {
		t.Helper()
		if err := block.WriteAt(m, pattern(seed, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	write(2, 5*mib)
	w.eventually("the bits have become what b missed", func() bool {
		missed := 0
		w.reps["a"].set(func() { missed = len(w.reps["a"].track.missed["b"]) })
		return missed == 1 && cleared("a")
	})
	_ = m.Close() // as a crash
	m = w.open("a")
	write(3, 9*mib+8192)
	before := w.reps["b"].disk.Count(block.OpWrite)
	w.reps["b"].set(func() { w.reps["b"].away = false })
	w.eventually("b is in sync", func() bool { return w.state("b") == volume.InSync })
	if n := w.reps["b"].disk.Count(block.OpWrite) - before; n != 2 {
		t.Errorf("%d writes to a replica that missed 2 blocks", n)
	}
	w.close(m)
	w.equalReplicas()
	if !cleared("a") || !cleared("b") {
		t.Error("intent bits are left after a clean close")
	}
}
