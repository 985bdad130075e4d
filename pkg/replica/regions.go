package replica

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// regions is the replica's write-intent bitmap and what other replicas missed.
// regionfile.go has its form on disk.
//
// What must be prevented: a change reaches the image, and after a crash no map
// tells so. So a region's bit is durable before the first change of the region
// begins (begin); a bit is cleared only when the mirror says that what it stands
// for is equal and durable everywhere, and only after what it stands for was
// added, durably, to what each absent replica missed (drop).
//
// To make a bit durable costs a disk's round trip, before the change. So the file
// has more bits than are needed: those of the whole area around (areas.go), and
// those of areas that were in use a moment ago. Only memory knows which of them
// stand for a change; after a crash all of them do. A change in a region whose bit
// the file has already only sets the bit in memory.
//
// The bits in memory have two generations: rotate makes all bits old ones; drop
// clears those that are old and not set anew, and dropCopied those of them that
// stand for what was copied to this replica.
//
// Concurrent changes that need new bits in the file share a commit: one of them
// writes the pages of all, and the next commit takes who came meanwhile.
type regions struct {
	file  *regionFile
	grain Grain

	// current has the bits of the present generation, a subset of durable. It is set
	// under mu and read without.
	current atomic.Pointer[[]atomic.Uint64]

	mu   sync.Mutex
	turn sync.Cond // signalled when writing ends
	// writing: somebody writes the file, without mu. Guarded by mu.
	writing bool
	// durable has the bits that the file has for certain. Guarded by mu.
	durable *bitmap.Set
	// wanted are the bits that the next commit makes durable. Guarded by mu.
	wanted *bitmap.Set
	// previous has the bits of older generations, and those that were found, a
	// subset of durable. Guarded by mu.
	previous *bitmap.Set
	// recent has a region of each area that was in use since the last sweep. Guarded by mu.
	recent *bitmap.Set
	// lazily, which must not block, has sweep called after a while; it is set before
	// the maps are used. sweeping: that is going to happen. Guarded by mu.
	lazily   func()
	sweeping bool
	// ahead is what the next commit sets without need; ahead.soon is set before the maps
	// are used. Guarded by mu.
	ahead ahead
	// missed has what each absent replica missed, by its name. Guarded by mu.
	missed map[string]*bitmap.Set
	// blind: what any replica missed is not known. Guarded by mu.
	blind bool
	// rotation is the number of the present generation in this session. Guarded by mu.
	rotation uint64
	err      error // writing failed: nothing is promised any more. Guarded by mu.
}

// Grain is the units of tracking. A region is what one bit stands for; an area is
// what gets its bits on disk at once.
type Grain struct {
	RegionBytes int64
	AreaRegions int
}

// regions is how many regions so many bytes have.
func (g Grain) regions(size int64) int { return int((size + g.RegionBytes - 1) / g.RegionBytes) }

// count is how many regions so many bytes have.
func (g *regions) count(size int64) int { return g.grain.regions(size) }

// openRegions reads a replica's maps; what can't be trusted counts as set.
func openRegions(file *regionFile, size int64, grain Grain) (*regions, error) {
	g := &regions{file: file, grain: grain, lazily: func() {}, ahead: ahead{soon: func() {}}}
	g.turn.L = &g.mu
	state, err := file.load(grain.regions(size))
	if err != nil {
		return nil, err
	}
	g.previous, g.missed, g.blind = state.intent, state.missed, state.blind
	g.durable = g.previous.Clone()
	g.wanted = bitmap.New(g.previous.Len())
	g.recent = bitmap.New(g.previous.Len())
	words := make([]atomic.Uint64, (g.previous.Len()+63)/64)
	g.current.Store(&words)
	return g, nil
}

// has says whether a change of these regions may begin at once.
func (g *regions) has(from, to int) bool {
	words := *g.current.Load()
	for i := from; i < to; i++ {
		if i/64 >= len(words) || words[i/64].Load()&(1<<(i%64)) == 0 {
			return false
		}
	}
	return true
}

// warm says whether a change there needs no waiting for the map.
func (g *regions) warm(off, n int64) bool {
	from, to := int(off/g.grain.RegionBytes), g.count(off+n)
	if g.has(from, to) {
		return true
	}
	if !g.mu.TryLock() {
		return false
	}
	defer g.mu.Unlock()
	return g.setDurable(from, to)
}

// setDurable sets the bits of a change if the file has them all; mu is held.
func (g *regions) setDurable(from, to int) bool {
	if g.err != nil || !g.durable.HasRange(from, to) {
		return false
	}
	for i := from; i < to; i++ {
		g.set(i)
	}
	g.lookAhead(to - 1)
	return true
}

// begin returns when the bits for a change are durable.
func (g *regions) begin(off, n int64) error {
	from, to := int(off/g.grain.RegionBytes), g.count(off+n)
	if n == 0 || g.has(from, to) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.setDurable(from, to) {
		if g.err != nil {
			return g.err
		}
		if to > g.durable.Len() {
			return fmt.Errorf("regions %d to %d of %d: %w", from, to, g.durable.Len(), volume.ErrOutOfRange)
		}
		g.wanted.AddRange(from, to)
		if g.writing { // perhaps of just these
			g.turn.Wait()
		} else {
			g.commit()
		}
	}
	return nil
}

// commit makes what is wanted durable, and the areas around and ahead; mu is held, but
// not while the file is written.
func (g *regions) commit() {
	bits := g.wholeAreas(g.wanted)
	if g.ahead.pending {
		bits.AddRange(g.ahead.from, g.ahead.to)
	}
	g.wanted = bitmap.New(g.durable.Len())
	if err := g.write(func() error { return g.file.addIntent(bits) }); err == nil {
		g.durable.Or(bits)
	}
}

// write runs one change of the file alone, without mu; mu is held before and
// after. A failure is for good.
func (g *regions) write(change func() error) error {
	g.writing = true
	g.mu.Unlock()
	err := change()
	g.mu.Lock()
	g.writing = false
	if err != nil && g.err == nil {
		g.err = err
	}
	g.turn.Broadcast()
	return err
}

// alone waits until nobody writes the file; mu is held.
func (g *regions) alone() {
	for g.writing {
		g.turn.Wait()
	}
}

// set sets a bit of the present generation; mu is held, and the bit is durable.
func (g *regions) set(i int) { (*g.current.Load())[i/64].Or(1 << (i % 64)) }

// rotate makes all bits old ones; seq must be higher than any before.
func (g *regions) rotate(seq uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone() // a commit under way sets its bits before, else what it set would be lost with an old one
	if seq <= g.rotation {
		return fmt.Errorf("generation %d is not after %d: %w", seq, g.rotation, volume.ErrConflict)
	}
	g.rotation = seq
	g.agePresent()
	return nil
}

func (g *regions) agePresent() {
	words := *g.current.Load()
	for i := range words {
		w := words[i].Swap(0)
		if w != 0 {
			g.recent.Add(64 * i)
		}
		for k := 0; w != 0; k, w = k+1, w>>1 {
			if w&1 != 0 {
				g.previous.Add(64*i + k)
			}
		}
	}
}

// mayDrop says whether generations before seq may be dropped: it must be the present
// one's number. mu is held, and nobody writes the file.
func (g *regions) mayDrop(seq uint64) error {
	if g.err == nil && (seq != g.rotation || seq == 0) {
		return fmt.Errorf("generation %d is not the present one, %d: %w", seq, g.rotation, volume.ErrConflict)
	}
	return g.err
}

// drop adds the old bits to what each of away missed, and takes from it what was
// copied since, durably, then clears them. What others missed is forgotten: they are
// InSync. seq must be the present generation's number. allocated is for those of which
// nobody knows what they missed.
func (g *regions) drop(seq uint64, away []volume.Absent, allocated *bitmap.Set) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	if err := g.mayDrop(seq); err != nil {
		return err
	}
	if len(away) > maxMissed {
		return fmt.Errorf("%d absent replicas: %w", len(away), volume.ErrInvalid)
	}
	missed := map[string]*bitmap.Set{}
	for _, a := range away {
		set := bitmap.New(g.durable.Len())
		set.Or(g.missed[a.Name])
		set.Or(g.previous)
		if g.blind {
			set.AddAll()
		}
		if a.Whole {
			set.Or(allocated)
		}
		set.RemoveRange(0, g.below(a.Progress))
		missed[a.Name] = set
	}
	if !g.sameMissed(missed) || g.blind {
		// Between these two moments the file has both, which is more than needed.
		if err := g.write(func() error { return g.file.putMissed(missed, false) }); err != nil {
			return err
		}
		g.missed, g.blind = missed, false
	}
	g.previous = bitmap.New(g.durable.Len())
	if g.crowded() {
		return g.clear(g.unused())
	}
	g.sweepLater()
	return nil
}

// dropCopied is for a replica that is resynced: it clears the old bits of what was
// copied to it. What nobody knows about may differ wherever it is allocated, and gets
// a bit. seq must be the present generation's number.
func (g *regions) dropCopied(seq uint64, p volume.Progress, allocated *bitmap.Set) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	if err := g.mayDrop(seq); err != nil {
		return err
	}
	if p.Whole {
		more := bitmap.New(g.durable.Len())
		more.Or(allocated)
		more.RemoveRange(0, g.below(p))
		if err := g.write(func() error { return g.file.addIntent(more) }); err != nil {
			return err
		}
		g.durable.Or(more)
		g.previous.Or(more)
	}
	if mutant.On("forget-own") {
		p.Below = int64(g.durable.Len()) * g.grain.RegionBytes
	}
	g.previous.RemoveRange(0, g.below(p))
	return g.clear(g.unused()) // copies touch an area once
}

// below is how many regions lie before what is yet to be copied.
func (g *regions) below(p volume.Progress) int { return int(p.Below / g.grain.RegionBytes) }

func (g *regions) sameMissed(missed map[string]*bitmap.Set) bool {
	return maps.EqualFunc(g.missed, missed, func(a, b *bitmap.Set) bool { return slices.Equal(a.Bytes(), b.Bytes()) })
}

// intent is the regions whose bit stands for a change.
func (g *regions) intent() *bitmap.Set {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.intentLocked()
}

func (g *regions) intentLocked() *bitmap.Set {
	s := g.previous.Clone()
	s.Or(g.wanted) // about to be set
	words := *g.current.Load()
	for i := range words {
		w := words[i].Load()
		for k := 0; w != 0; k, w = k+1, w>>1 {
			if w&1 != 0 {
				s.Add(64*i + k)
			}
		}
	}
	if g.err != nil {
		s.AddAll()
	}
	return s
}

// missedBy is the regions whose bit stands for a change, or that name missed.
func (g *regions) missedBy(name string) *bitmap.Set {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.intentLocked()
	s.Or(g.missed[name])
	if g.blind {
		s.AddAll()
	}
	return s
}

// grow makes room for a larger volume; the new regions have no bits.
func (g *regions) grow(size int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	n := g.count(size)
	if g.err != nil || n <= g.durable.Len() {
		return g.err
	}
	if err := g.write(func() error { return g.file.grow(n) }); err != nil {
		return err
	}
	larger := func(old *bitmap.Set) *bitmap.Set {
		s := bitmap.New(n)
		s.Or(old)
		return s
	}
	words := make([]atomic.Uint64, (n+63)/64)
	for i, old := 0, *g.current.Load(); i < len(old); i++ {
		words[i].Store(old[i].Load())
	}
	g.current.Store(&words)
	g.durable, g.previous, g.wanted, g.recent = larger(g.durable), larger(g.previous), larger(g.wanted), larger(g.recent)
	for name, set := range g.missed {
		g.missed[name] = larger(set)
	}
	return nil
}

// failed is why the maps promise nothing any more.
func (g *regions) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
