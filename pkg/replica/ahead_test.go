package replica

import (
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestSequentialWriterFindsItsBits: who writes from one end to the other waits for commits
// only at the beginning, and not many areas are marked that nobody needs.
func TestSequentialWriterFindsItsBits(t *testing.T) {
	const areas = 100
	size := int64(areas*areaRegions-7) * volume.RegionBytes
	f, g := madeRegions(t, size)
	asked := false
	g.ahead.soon = func() { asked = true }
	waited := 0
	for off := int64(0); off < size; off += volume.RegionBytes {
		before := f.syncs
		if err := g.begin(off, volume.RegionBytes); err != nil {
			t.Fatal(err)
		}
		waited += f.syncs - before
		if asked {
			asked = false
			if err := g.commitAhead(); err != nil {
				t.Fatal(err)
			}
		}
		written := g.count(off + volume.RegionBytes)
		if n := newRegions(t, f, size).intent().Count(); n < written || n > written+(aheadAreas+1)*areaRegions {
			t.Fatalf("%d regions have a bit on disk after %d were written", n, written)
		}
	}
	if waited != runAreas+1 {
		t.Errorf("the writer waited for %d commits, want %d", waited, runAreas+1)
	}
	if f.syncs > areas/4 {
		t.Errorf("%d commits for %d areas", f.syncs, areas)
	}
	if n := g.intent().Count(); n != g.count(size) {
		t.Errorf("%d of %d regions stand for a change", n, g.count(size))
	}
}

// TestNothingAheadOfScatteredWrites: areas that are no run have none ahead, and neither
// has a run whose next areas are there.
func TestNothingAheadOfScatteredWrites(t *testing.T) {
	f, g := madeRegions(t, 100*areaRegions*volume.RegionBytes)
	asked := 0
	g.ahead.soon = func() { asked++ }
	begin := func(area int) {
		t.Helper()
		if err := g.begin(int64(area*areaRegions)*volume.RegionBytes, 4096); err != nil {
			t.Fatal(err)
		}
	}
	for _, area := range []int{99, 50, 3, 70, 51, 4, 98} {
		begin(area)
	}
	if asked != 0 {
		t.Fatalf("%d commits ahead of scattered writes", asked)
	}
	begin(5) // after 3 and 4
	begin(6)
	if asked != 1 {
		t.Errorf("%d commits ahead of a run, want 1", asked)
	}
	// A commit that somebody waits for took them along.
	syncs := f.syncs
	if err := g.commitAhead(); err != nil || f.syncs != syncs {
		t.Errorf("%d commits, %v", f.syncs-syncs, err)
	}
	if n := newRegions(t, f, 100*areaRegions*volume.RegionBytes).intent().Count(); n != 10*areaRegions {
		t.Errorf("%d regions have a bit on disk, want those of 10 areas", n)
	}
}

// TestAheadFails: a commit that nobody waits for fails the maps as well.
func TestAheadFails(t *testing.T) {
	f, g := madeRegions(t, 100*areaRegions*volume.RegionBytes)
	for area := range runAreas + 1 {
		if err := g.begin(int64(area*areaRegions)*volume.RegionBytes, 4096); err != nil {
			t.Fatal(err)
		}
	}
	f.stopAt = f.ops + 1
	wantErr(t, "a commit ahead", g.commitAhead(), errCrash)
	wantErr(t, "a change after that", g.begin(50*areaRegions*volume.RegionBytes, 4096), errCrash)
}

// BenchmarkFirstChangeOfAGeneration is what a write pays whose region has its bit in the
// file but not yet in memory, as after each clearing; the volume has 1 TiB.
func BenchmarkFirstChangeOfAGeneration(b *testing.B) {
	const size = 1 << 40
	f := &crashFile{}
	if err := makeRegions(f, uid(1), testGrain.regions(size)); err != nil {
		b.Fatal(err)
	}
	g := newRegions(b, f, size)
	if err := g.begin(0, size); err != nil {
		b.Fatal(err)
	}
	seq, off := uint64(0), int64(size)
	for b.Loop() {
		if off >= size {
			b.StopTimer()
			seq, off = seq+1, 0
			if err := g.rotate(seq); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if !g.warm(off, 4096) {
			b.Fatal("not warm")
		}
		off += volume.RegionBytes
	}
}
