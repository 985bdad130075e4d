package replica

// A sequential writer, as a rebuild is, needs the bits of one area after the other, and would
// wait for a commit at each. So what follows a run of areas that the file has is committed
// before it is needed, in the background, while the writer goes on. As with a
// whole area, the file has more bits than are needed then: no more areas than the run
// has, of which aheadAreas count at most.
const (
	runAreas   = 2  // a shorter run tells nothing
	aheadAreas = 16 // 64 MiB
)

// ahead is a commit of areas that nobody waits for.
type ahead struct {
	soon    func() // has commitAhead called, elsewhere; it must not block
	pending bool   // that is going to happen, or happens
	from    int    // the regions
	to      int
}

// lookAhead is told of a change in a region that has its bit in the file; mu is held.
// It is on the way of an application's writes: where all is marked it looks at one bit.
func (g *regions) lookAhead(region int) {
	size, last := g.grain.AreaRegions, g.durable.Len()-1
	next := (region/size + 1) * size
	if g.ahead.pending || next > last || g.durable.Has(min(next+aheadAreas/2*size, last)) {
		return
	}
	run := g.runBefore(next - size)
	if run < runAreas || g.durable.Has(min(next+run/2*size, last)) {
		return
	}
	g.ahead.pending, g.ahead.from, g.ahead.to = true, next, next+run*size
	g.ahead.soon()
}

// runBefore is how many whole areas right before the one that begins with a region
// the file has, at most aheadAreas; mu is held.
func (g *regions) runBefore(region int) int {
	size, n := g.grain.AreaRegions, 0
	for n < aheadAreas && region >= (n+1)*size && g.durable.HasRange(region-(n+1)*size, region-n*size) {
		n++
	}
	return n
}

// commitAhead makes the areas ahead durable, if no commit has done so meanwhile.
func (g *regions) commitAhead() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone()
	if g.err == nil && !g.durable.HasRange(g.ahead.from, min(g.ahead.to, g.durable.Len())) {
		g.commit()
	}
	g.ahead.pending = false
	return g.err
}
