package replica

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// crashFile is a regions.map in memory that knows what is durable. Writes since
// the last sync may be there after a crash, or not, or torn.
type crashFile struct {
	mu      sync.Mutex
	now     []byte
	durable []byte
	pending []pendingWrite
	syncs   int
	ops     int // writes and syncs
	stopAt  int // the operation that fails, and all after it; 0 means none
	hold    chan struct{}
	held    bool // a sync waits for hold
}

type pendingWrite struct {
	off int64
	p   []byte
}

var testGrain = Grain{RegionBytes: volume.RegionBytes, AreaRegions: areaRegions}

var errCrash = errors.New("crashed")

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) step() error {
	f.ops++
	if f.stopAt > 0 && f.ops >= f.stopAt {
		return errCrash
	}
	return nil
}

func place(b, p []byte, off int64) []byte {
	if need := int(off) + len(p); need > len(b) {
		b = append(b, make([]byte, need-len(b))...)
	}
	copy(b[off:], p)
	return b
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, pendingWrite{off, slices.Clone(p)}) // what fails may have happened
	if err := f.step(); err != nil {
		return 0, err
	}
	f.now = place(f.now, p, off)
	return len(p), nil
}

func (f *crashFile) Sync() error {
	if f.hold != nil {
		f.mu.Lock()
		f.held = true
		f.mu.Unlock()
		<-f.hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(); err != nil {
		return err
	}
	f.syncs++
	f.durable, f.pending = slices.Clone(f.now), nil
	return nil
}

func (f *crashFile) Close() error { return nil }

// after is a file as a crash may leave it.
func (f *crashFile) after(choose func(int) int) *crashFile {
	b := slices.Clone(f.durable)
	for _, w := range f.pending {
		switch choose(3) {
		case 1:
			b = place(b, w.p, w.off)
		case 2:
			b = place(b, w.p[:choose(len(w.p))], w.off) // torn
		}
	}
	return &crashFile{now: b, durable: slices.Clone(b)}
}

func newRegions(t interface{ Fatal(...any) }, f *crashFile, size int64) *regions {
	g, err := openRegions(&regionFile{f: f, uid: uid(1)}, size, testGrain)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func madeRegions(t interface{ Fatal(...any) }, size int64) (*crashFile, *regions) {
	f := &crashFile{}
	if err := makeRegions(f, uid(1), testGrain.regions(size)); err != nil {
		t.Fatal(err)
	}
	return f, newRegions(t, f, size)
}

// absent is replicas that are away, and not being resynced.
func absent(names ...string) (away []volume.Absent) {
	for _, n := range names {
		away = append(away, volume.Absent{Name: n})
	}
	return away
}

// progress is how far some resync may have come.
func progress(t *rapid.T, count int) volume.Progress {
	return volume.Progress{
		Below: int64(rapid.SampledFrom([]int{0, 1, 2, count / 2, count}).Draw(t, "below")) * volume.RegionBytes,
		Whole: rapid.Bool().Draw(t, "whole"),
	}
}

// note is what a replica makes of it.
func note(set map[int]bool, p volume.Progress, allocated *bitmap.Set) {
	for i := allocated.Next(0); p.Whole && i < allocated.Len(); i = allocated.Next(i + 1) {
		set[i] = true
	}
	maps.DeleteFunc(set, func(i int, _ bool) bool { return int64(i)*volume.RegionBytes < p.Below })
}

// TestRegionsSurviveCrashes runs random changes, rotations, clearings, resyncs, sweeps and growth,
// crashes at a random write or sync, loses or tears what was not synced, and
// demands of what is read then that no bit is missing that was promised.
func TestRegionsSurviveCrashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 2*regionsPerPage+5).Draw(t, "regions")
		f, g := madeRegions(t, int64(count)*volume.RegionBytes)
		f.stopAt = f.ops + rapid.IntRange(1, 40).Draw(t, "crash")
		intent, missed := map[int]bool{}, map[string]map[int]bool{}
		old, fresh, seq := map[int]bool{}, map[int]bool{}, uint64(0)
		region := func() int { // few different ones, on all pages
			return rapid.SampledFrom([]int{0, 1, areaRegions, count / 2, count - 1}).Draw(t, "region") % count
		}
		sequential := 0
	run:
		for range 40 {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2:
				i := region()
				if g.begin(int64(i)*volume.RegionBytes, volume.RegionBytes) != nil {
					break run
				}
				intent[i], fresh[i] = true, true
			case 3:
				seq++
				if err := g.rotate(seq); err != nil {
					t.Fatal(err)
				}
				for i := range fresh {
					old[i] = true
				}
				fresh = map[int]bool{}
			case 4:
				if seq == 0 {
					continue
				}
				away := rapid.SampledFrom([][]string{nil, {"x"}, {"x", "y"}, {"y"}}).Draw(t, "away")
				for name := range missed { // may be forgotten from now on
					if !slices.Contains(away, name) {
						delete(missed, name)
					}
				}
				// A crash on the way leaves an old bit, or what absent ones missed has it.
				for _, name := range away {
					if missed[name] == nil {
						missed[name] = map[int]bool{}
					}
					for i := range old {
						missed[name][i] = true
					}
				}
				for i := range old {
					if !fresh[i] {
						delete(intent, i)
					}
				}
				// Of the first of them a resync may have copied something, or nothing is known.
				list, allocated := absent(away...), bitmap.New(count)
				if len(away) > 0 {
					list[0].Progress = progress(t, count)
					allocated.Add(region())
					note(missed[away[0]], volume.Progress{Below: list[0].Below}, allocated)
				}
				old = map[int]bool{}
				if g.drop(seq, list, allocated) != nil {
					break run
				}
				if len(away) > 0 { // nothing is promised of all this before
					note(missed[away[0]], list[0].Progress, allocated)
				}
			case 5:
				if g.sweep() != nil {
					break run
				}
			case 6: // the session ends, the next begins
				if g.close() != nil {
					break run
				}
				g, seq = newRegions(t, f, int64(count)*volume.RegionBytes), 0
				for i := range intent { // what was found is old
					old[i] = true
				}
				fresh = map[int]bool{}
			case 8: // a sequential writer goes on, and has areas marked ahead
				i := sequential % count
				sequential += areaRegions
				if g.begin(int64(i)*volume.RegionBytes, volume.RegionBytes) != nil {
					break run
				}
				intent[i], fresh[i] = true, true
				if rapid.Bool().Draw(t, "ahead") && g.commitAhead() != nil {
					break run
				}
			case 9: // the replica is resynced itself
				if seq == 0 {
					continue
				}
				p, allocated := progress(t, count), bitmap.New(count)
				allocated.Add(region())
				note(old, p, allocated)
				for i := range intent {
					if below := int64(i)*volume.RegionBytes < p.Below; below && !fresh[i] {
						delete(intent, i)
					}
				}
				if g.dropCopied(seq, p, allocated) != nil {
					break run
				}
				for i := range old {
					intent[i] = true
				}
			case 7:
				count += rapid.IntRange(0, 3).Draw(t, "growth")
				if g.grow(int64(count)*volume.RegionBytes) != nil {
					break run
				}
			}
		}
		choose := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "left") }
		h := newRegions(t, f.after(choose), int64(count)*volume.RegionBytes)
		lacks := func(what string, set *bitmap.Set, want map[int]bool) {
			for i := range want {
				if !set.Has(i) {
					t.Fatalf("%s lacks region %d of %d after the crash", what, i, count)
				}
			}
		}
		lacks("intent", h.intent(), intent)
		for name, want := range missed {
			lacks("what "+name+" missed", h.missedBy(name), want)
		}
	})
}

// TestRegionsExact: without a crash nothing is set that need not be.
func TestRegionsExact(t *testing.T) {
	f, g := madeRegions(t, 100*volume.RegionBytes)
	begin := func(i int) {
		t.Helper()
		if err := g.begin(int64(i)*volume.RegionBytes+4096, 4096); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, s *bitmap.Set, members ...int) {
		t.Helper()
		got := []int{}
		for i := s.Next(0); i < s.Len(); i = s.Next(i + 1) {
			got = append(got, i)
		}
		if fmt.Sprint(got) != fmt.Sprint(append([]int{}, members...)) {
			t.Errorf("%s: %v, want %v", what, got, members)
		}
	}
	reread := func() *regions { return newRegions(t, f, 100*volume.RegionBytes) }
	area := func(n int) []int { // the regions of area n
		var all []int
		for i := n * areaRegions; i < min((n+1)*areaRegions, 100); i++ {
			all = append(all, i)
		}
		return all
	}
	begin(3)
	begin(70)
	want("intent", g.intent(), 3, 70)
	want("on disk", reread().intent(), append(area(0), area(1)...)...)
	if err := g.rotate(1); err != nil {
		t.Fatal(err)
	}
	syncs := f.syncs
	begin(70) // old and durable: set anew without a write
	begin(71) // durable, because its area is
	if f.syncs != syncs {
		t.Error("a bit that is durable was written again")
	}
	if err := g.drop(1, absent("x"), nil); err != nil {
		t.Fatal(err)
	}
	want("intent after clearing", g.intent(), 70, 71)
	want("what x missed", g.missedBy("x"), 3, 70, 71)
	want("what y missed", g.missedBy("y"), 70, 71)
	want("what x missed, on disk", reread().missedBy("x"), append(area(0), area(1)...)...)
	for range 2 { // the first one finds that area 0 was in use a moment ago
		want("on disk", reread().intent(), append(area(0), area(1)...)...)
		if err := g.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	want("on disk, swept", reread().intent(), area(1)...)
	want("what x missed, on disk, swept", reread().missedBy("x"), append([]int{3}, area(1)...)...)
	if err := errors.Join(g.rotate(2), g.drop(2, absent("y"), nil)); err != nil {
		t.Fatal(err)
	}
	want("after x is in sync", g.missedBy("x"))
	want("what y missed", g.missedBy("y"), 70, 71)
	wantErr(t, "a late rotation", g.rotate(2), volume.ErrConflict)
	wantErr(t, "a late clearing", g.drop(1, nil, nil), volume.ErrConflict)
	begin(99)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	g = reread()
	want("after a close", g.intent(), area(1)...)
	wantErr(t, "a clearing of another session", g.drop(2, nil, nil), volume.ErrConflict)
	if err := errors.Join(g.rotate(1), g.drop(1, nil, nil), g.close()); err != nil {
		t.Fatal(err)
	}
	want("after a clean close", reread().intent())
}

// TestRegionsOfAResync: what was copied is taken out, on the source and on the target,
// in memory and on disk, and nothing else is.
func TestRegionsOfAResync(t *testing.T) {
	const areas = 4
	size := int64(areas*areaRegions) * volume.RegionBytes
	at := func(area int) int64 { return int64(area*areaRegions) * volume.RegionBytes }
	f, g := madeRegions(t, size)
	allocated := bitmap.New(areas * areaRegions)
	allocated.AddRange(0, 3*areaRegions)
	// The first cycle finds that nobody knows what is missing, and that one area is copied.
	first := volume.Progress{Below: at(1), Whole: true}
	if err := errors.Join(g.begin(at(0), 1), g.begin(at(3), 1), g.rotate(1), g.begin(at(0), 1)); err != nil {
		t.Fatal(err)
	}
	if err := g.drop(1, []volume.Absent{{Name: "x", Progress: first}, {Name: "y"}}, allocated); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"x": 2*areaRegions + 1 + 1, "y": 1 + 1} { // with the bit that was set anew
		if n := g.missedBy(name).Count(); n != want {
			t.Errorf("%s missed %d regions, want %d", name, n, want)
		}
	}
	second := volume.Progress{Below: at(2)}
	if err := errors.Join(g.rotate(2), g.drop(2, []volume.Absent{{Name: "x", Progress: second}}, nil), g.close()); err != nil {
		t.Fatal(err)
	}
	h := newRegions(t, f, size)
	if s := h.missedBy("x"); s.Count() != areaRegions+1 || s.Next(0) != 2*areaRegions {
		t.Errorf("after a restart x missed %d regions from %d on", s.Count(), s.Next(0))
	}
	// The same at the target.
	if err := errors.Join(h.begin(at(0), 1), h.begin(at(3), 1), h.rotate(1), h.begin(at(3), 1), h.dropCopied(1, first, allocated)); err != nil {
		t.Fatal(err)
	}
	if n := newRegions(t, f, size).intent().Count(); n != 3*areaRegions {
		t.Errorf("%d regions may differ at the target after a crash, want %d", n, 3*areaRegions)
	}
	if err := errors.Join(h.rotate(2), h.dropCopied(2, volume.Progress{Below: size}, nil)); err != nil {
		t.Fatal(err)
	}
	if s := h.intent(); s.Count() != 0 {
		t.Errorf("%d regions may differ when everything is copied", s.Count())
	}
	wantErr(t, "a late note", h.dropCopied(1, first, allocated), volume.ErrConflict)
	if n := newRegions(t, f, size).intent().Count(); n != 0 {
		t.Errorf("%d regions on disk when everything is copied", n)
	}
}

// TestRegionsCrowded: areas that are not needed are given up at once when there
// are many.
func TestRegionsCrowded(t *testing.T) {
	size := int64(2*manyAreas*areaRegions) * volume.RegionBytes
	f, g := madeRegions(t, size)
	later := 0
	g.lazily = func() { later++ }
	if err := errors.Join(g.begin(0, size), g.rotate(1), g.begin(5, 1), g.drop(1, nil, nil)); err != nil {
		t.Fatal(err)
	}
	if n := newRegions(t, f, size).intent().Count(); n != areaRegions {
		t.Errorf("%d bits on disk, want %d", n, areaRegions)
	}
	if err := errors.Join(g.begin(1<<30, 1), g.rotate(2), g.drop(2, nil, nil), g.rotate(3), g.drop(3, nil, nil)); err != nil {
		t.Fatal(err)
	}
	if later != 1 {
		t.Errorf("a sweep was asked for %d times, want 1", later)
	}
}

// TestRegionsDamaged: what can't be trusted counts as set, and only that.
func TestRegionsDamaged(t *testing.T) {
	size := int64(2*regionsPerPage) * volume.RegionBytes
	for name, c := range map[string]struct {
		page         int64
		intent, miss int
	}{
		"the directory":   {0, 0, 2 * regionsPerPage},
		"an intent page":  {intentPage(1), regionsPerPage, regionsPerPage + 1},
		"a missed page":   {missedPage(0, 0), 0, regionsPerPage},
		"an unused page":  {missedPage(0, 5), 0, 1},
		"cut off in half": {-1, regionsPerPage, regionsPerPage + 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := madeRegions(t, size)
			if err := errors.Join(g.begin(0, 1), g.rotate(1), g.drop(1, absent("x"), nil), g.close()); err != nil {
				t.Fatal(err)
			}
			if c.page >= 0 {
				f.now[c.page*pageBytes+100] ^= 1
			} else {
				f.now = f.now[:intentPage(1)*pageBytes+17]
			}
			for range 2 { // it is repaired, and says the same then
				h := newRegions(t, f, size)
				if n := h.intent().Count(); n != c.intent {
					t.Errorf("%d intent bits, want %d", n, c.intent)
				}
				n := h.missedBy("x").Count()
				if n < c.miss {
					t.Errorf("%d regions missed, want %d", n, c.miss)
				}
			}
		})
	}
}

// TestRegionsShareCommits: changes that come while the file is being written
// share the next commit.
func TestRegionsShareCommits(t *testing.T) {
	f, g := madeRegions(t, 50*areaRegions*volume.RegionBytes)
	before := f.syncs
	f.hold = make(chan struct{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := g.begin(int64(i*areaRegions)*volume.RegionBytes, 4096); err != nil {
				t.Error(err)
			}
			if !g.warm(int64(i*areaRegions)*volume.RegionBytes, volume.RegionBytes) {
				t.Errorf("region %d has no bit", i)
			}
		})
	}
	waiting := func() bool {
		f.mu.Lock()
		held := f.held
		f.mu.Unlock()
		if !held {
			return false
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.writing && g.wanted.Count()+g.file.intent.Count()/areaRegions == 50
	}
	for !waiting() {
		runtime.Gosched()
	}
	close(f.hold)
	wg.Wait()
	if n := f.syncs - before; n != 2 {
		t.Errorf("%d commits for 50 changes, want 2", n)
	}
	if n := newRegions(t, f, 50*areaRegions*volume.RegionBytes).intent().Count(); n != 50*areaRegions {
		t.Errorf("%d bits on disk", n)
	}
}

// TestSessionIntent: a change sets its bit before the image is touched, on disk,
// and a failing bitmap fails the replica.
func TestSessionIntent(t *testing.T) {
	s := newServer(t, Options{})
	f := withFaults(s)
	create(t, s, uid(1), 8*mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	f.set(func(op string) error {
		if op != "write" && op != "punch" {
			return nil
		}
		p := make([]byte, pageBytes)
		if b, err := os.ReadFile(replicaDir(s, uid(1)) + "/" + regionsFile); err == nil {
			copy(p, b[intentPage(0)*pageBytes:])
		}
		if p[pageHeader] == 0 {
			t.Errorf("%s before its intent bit", op)
		}
		return nil
	})
	if err := block.WriteAt(ses, pattern(4096, 1), volume.RegionBytes); err != nil {
		t.Fatal(err)
	}
	set, err := ses.Regions(deadline(t), volume.MapIntent, "")
	if err != nil || set.Count() != 1 || !set.Has(1) {
		t.Errorf("intent: %v, %v", set, err)
	}
	if err := block.Do(ses, &block.IO{Op: block.OpTrim, Off: 0, Len: 4096}); err != nil {
		t.Fatal(err)
	}
	if set, err = ses.Regions(deadline(t), volume.MapAllocated, ""); err != nil || set.Count() != 1 || !set.Has(1) {
		t.Errorf("allocated: %v, %v", set, err)
	}
	hashes, err := ses.Hashes(deadline(t), volume.RegionBytes, 8192)
	if err != nil || len(hashes) != 2*volume.HashBytes || !slices.Equal(hashes, Hash(append(pattern(4096, 1), make([]byte, 4096)...))) {
		t.Errorf("hashes: %x, %v", hashes, err)
	}
	s = restart(t, s)
	ses = open(t, s, opening(uid(1), 2, 1))
	if set, err = ses.Regions(deadline(t), volume.MapMissed, "n2"); err != nil || set.Count() != areaRegions {
		t.Errorf("after a restart: %v, %v", set, err)
	}
	ses.regions.mu.Lock()
	ses.regions.err = errCrash
	ses.regions.mu.Unlock()
	wantErr(t, "a write without a bitmap", block.WriteAt(ses, pattern(4096, 1), 5*volume.RegionBytes), volume.ErrFailed)
	if _, err := s.Open(deadline(t), opening(uid(1), 3, 1)); !errors.Is(err, volume.ErrFailed) {
		t.Errorf("opened again: %v", err)
	}
}
