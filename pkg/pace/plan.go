package pace

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// stuckAfter: a volume whose step takes so long makes room for another one. Its
// step may wait for requests that wait for space, say.
const stuckAfter = 10 * time.Second

// plan decides whose turn it is. It is pure: now is the time since some moment.
type plan struct {
	volumes int // that may copy at once
	rate    rate
	entries map[volume.ID]*entry
}

// entry is a volume that has steps waiting or under way; it is forgotten when it
// has neither.
type entry struct {
	id      volume.ID
	inSync  int           // replicas, when it last asked
	since   time.Duration // when it first asked
	last    time.Duration // when it last got a turn
	waiting []*Turn       // in the order of asking
	running []*Turn
}

func newPlan(o Options) *plan {
	return &plan{volumes: o.Volumes, rate: newRate(o.BytesPerSecond), entries: map[volume.ID]*entry{}}
}

// ask adds a step that waits for its turn.
func (p *plan) ask(now time.Duration, t *Turn) {
	e := p.entries[t.step.Volume]
	if e == nil {
		e = &entry{id: t.step.Volume, since: now, last: -1}
		p.entries[t.step.Volume] = e
	}
	e.inSync = t.step.InSync
	e.waiting = append(e.waiting, t)
}

// done removes a step that is over, or given up.
func (p *plan) done(t *Turn, used int64) {
	e := p.entries[t.step.Volume]
	if e == nil {
		return
	}
	is := func(x *Turn) bool { return x == t }
	if slices.ContainsFunc(e.running, is) {
		p.rate.took(used - t.bytes)
	}
	e.waiting = slices.DeleteFunc(e.waiting, is)
	e.running = slices.DeleteFunc(e.running, is)
	if len(e.waiting)+len(e.running) == 0 {
		delete(p.entries, t.step.Volume)
	}
}

// copies says whether the volume takes one of the few places.
func (e *entry) copies(now time.Duration) bool {
	return slices.ContainsFunc(e.running, func(t *Turn) bool { return now-t.began < stuckAfter })
}

// steps is how many steps are under way, but for those that are stuck.
func (p *plan) steps(now time.Duration) int {
	n := 0
	for _, e := range p.entries {
		for _, t := range e.running {
			if now-t.began < stuckAfter {
				n++
			}
		}
	}
	return n
}

// inDanger are the volumes with the fewest in-sync replicas first, then those that
// have waited longest.
func (p *plan) inDanger() []*entry {
	all := make([]*entry, 0, len(p.entries))
	for _, e := range p.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.inSync, b.inSync), cmp.Compare(a.since, b.since), cmp.Compare(a.id, b.id))
	})
	return all
}

// admitted are the volumes that may copy now: the first few in danger, but those
// that are stuck, and among them whoever has had a turn longest ago first. A
// volume that is under way and not among them ends its step, and takes a place
// until then.
func (p *plan) admitted(now time.Duration) []*entry {
	var in []*entry
	places := p.volumes
	for _, e := range p.inDanger() {
		if len(e.running) > 0 && !e.copies(now) {
			continue // stuck
		}
		if len(in) < p.volumes {
			in = append(in, e)
		} else if e.copies(now) {
			places--
		}
	}
	in = in[:max(0, min(len(in), places))]
	slices.SortStableFunc(in, func(a, b *entry) int { return cmp.Compare(a.last, b.last) })
	return in
}

// next gives turns to those whose time has come, and says after how long to look
// again, if nothing happens before.
func (p *plan) next(now time.Duration, m measured) (given []*Turn, again time.Duration) {
	if len(p.entries) == 0 {
		p.rate.end()
		return nil, copyFor
	}
	m.running = p.steps(now)
	if p.rate.phase == idle {
		p.rate.begin(now, m)
	}
	p.rate.advance(now, m)
	for progress := true; progress; {
		progress = false
		for _, e := range p.admitted(now) {
			if len(e.waiting) == 0 {
				continue
			}
			bytes, wait := p.rate.step(now)
			if bytes == 0 {
				return given, wait
			}
			t := e.waiting[0]
			e.waiting = e.waiting[1:]
			e.running = append(e.running, t)
			e.last, t.began, t.bytes = now, now, bytes
			p.rate.took(bytes)
			given, progress = append(given, t), true
			break // the order has changed
		}
	}
	return given, copyFor
}

// poke has everybody who waits look again.
func (p *plan) poke() {
	for _, e := range p.entries {
		for _, t := range e.waiting {
			select {
			case t.poked <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
}
