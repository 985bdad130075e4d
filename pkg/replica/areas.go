package replica

import (
	"errors"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// The file's intent bits are set by areas, each of which is one word of a bitmap,
// 4 MiB: random writes of a database make the bits of all that it uses durable
// within a few commits, and hardly ever wait afterwards. What that costs is work
// after a crash, for more is compared then. So areas are given up again when
// nothing in them was changed for a while, and sooner when there are many.
const (
	areaRegions = 64
	// sweepAfter is how often unused areas are given up; one stays for up to twice
	// that after its last change was cleared.
	sweepAfter = 30 * time.Second
	// manyAreas bounds the areas that are kept though they are not needed: 16 GiB.
	manyAreas = 4096
)

// wholeAreas is the regions of all areas that the set touches.
func (g *regions) wholeAreas(set *bitmap.Set) *bitmap.Set {
	whole := bitmap.New(set.Len())
	for i := set.Next(0); i < set.Len(); {
		from := i - i%g.grain.AreaRegions
		whole.AddRange(from, min(from+g.grain.AreaRegions, set.Len()))
		i = set.Next(from + g.grain.AreaRegions)
	}
	return whole
}

// sweep gives up the areas in which nothing was changed since the last one.
func (g *regions) sweep() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	g.sweeping = false
	if g.err != nil {
		return g.err
	}
	unused := g.unused()
	unused.AndNot(g.wholeAreas(g.recent))
	g.recent = bitmap.New(g.durable.Len())
	if err := g.clear(unused); err != nil {
		return err
	}
	g.sweepLater()
	return nil
}

// unused is the regions of all areas that the file has for nothing; mu is held,
// and nobody writes the file.
func (g *regions) unused() *bitmap.Set {
	unused := g.durable.Clone()
	if !mutant.On("sweep-in-use") {
		unused.AndNot(g.wholeAreas(g.intentLocked()))
	}
	return unused
}

// crowded says whether there are too many areas; mu is held.
func (g *regions) crowded() bool { return g.durable.Count() > manyAreas*g.grain.AreaRegions }

// clear takes bits that stand for nothing out of the file; mu is held. From here
// on a change that needs one of them has to set it in the file again, after this.
func (g *regions) clear(bits *bitmap.Set) error {
	if bits.Count() == 0 {
		return nil
	}
	g.durable.AndNot(bits)
	return g.write(func() error { return g.file.clearIntent(bits) })
}

// sweepLater has sweep called after a while if it may find anything; mu is held.
func (g *regions) sweepLater() {
	if !g.sweeping && g.unused().Count() > 0 {
		g.sweeping = true
		g.lazily()
	}
}

// close clears what stands for nothing and gives the file back; nobody may use the
// maps any more.
func (g *regions) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	var err error
	if g.err == nil {
		err = g.clear(g.unused())
	}
	g.err = errors.Join(err, volume.ErrClosed)
	return errors.Join(err, g.file.close())
}
