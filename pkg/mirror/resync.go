package mirror

import (
	"cmp"
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// copyRange makes a range of one leg equal to another's. The machine holds the
// range: nothing changes it until Copied.
func (m *Mirror) copyRange(a core.Action) {
	res, source := core.Lost, false
	t := m.resyncs.take(a.Leg, a.Session) // nil for a correction
	var copied int64
	defer func() { t.over(copied + (a.Op.Len-copied)/comparedCosts) }() // after the next one was asked for
	src, dst := m.legs[a.Src].Load(), m.legs[a.Leg].Load()
	switch {
	case src == nil || src.session != a.SrcSession: // by now it may be a replica that is resynced itself
		source = true
	case dst == nil || dst.session != a.Session:
	default:
		var err error
		if copied, source, err = m.equalize(a, src.dev, dst.dev); err != nil {
			m.log.Warn("a range could not be copied", "from", m.reps[a.Src].Node, "to", m.reps[a.Leg].Node, "sourceFailed", source, "error", err)
			m.pause()
		}
		m.resyncs.did(a.Leg, a.Session, a.Op.Len, copied)
		res = LegResult(err)
	}
	m.step(func(c *core.Machine) { c.Copied(a.Leg, a.Session, a.Op, res, source) })
}

// comparedCosts: so many bytes that were only compared count as one that was copied,
// for they are read and hashed where they are.
const comparedCosts = 4

// equalize bounds the time that replicas get to compare. With what was a hole there
// is nothing to compare.
func (m *Mirror) equalize(a core.Action, src, dst Leg) (copied int64, source bool, err error) {
	ctx, cancel := context.WithTimeout(m.ctx, m.opt.OpenTimeout)
	defer cancel()
	s := legSides{ctx: ctx, source: src, target: dst}
	if m.resyncs.wasHole(a.Leg, a.Session, a.Op.Off, a.Op.Len) {
		return Equalize(blindSides{s}, a.Op.Off, a.Op.Len)
	}
	return Equalize(s, a.Op.Off, a.Op.Len)
}

// name is what replicas call another one: the same as long as it is a replica of
// the volume, and not used again.
func (m *Mirror) name(leg int) string { return cmp.Or(m.reps[leg].ID, string(m.reps[leg].Node)) }

// tracker is a leg's, if it still is in that session.
func (m *Mirror) tracker(leg int, s volume.Session) (Tracker, error) {
	l := m.legs[leg].Load()
	if l == nil || l.session != s {
		return nil, errNoLeg
	}
	return l.dev, nil
}

// readMap asks a leg for a map.
func (m *Mirror) readMap(a core.Action) {
	ctx, cancel := context.WithTimeout(m.ctx, m.opt.OpenTimeout)
	defer cancel()
	kind := map[core.MapKind]volume.MapKind{
		core.MapIntent: volume.MapIntent, core.MapMissed: volume.MapMissed, core.MapAllocated: volume.MapAllocated,
	}[a.Map]
	about := ""
	if a.About >= 0 {
		about = m.name(a.About)
	}
	t, err := m.tracker(a.Leg, a.Session)
	if err != nil {
		m.step(func(c *core.Machine) { c.MapRead(a, core.Lost, nil) })
		return
	}
	set, err := t.Regions(ctx, kind, about)
	if err != nil {
		m.log.Warn("a replica's map could not be read", "replica", m.reps[a.Leg].Node, "map", kind, "error", err)
	} else {
		if a.Map == core.MapAllocated && a.Leg == a.About {
			m.resyncs.target(a.Leg, a.Session, set.Clone()) // the machine gets this one
		}
		m.log.Debug("read a replica's map", "replica", m.reps[a.Leg].Node, "map", kind, "about", about, "regions", set.Count())
	}
	m.step(func(c *core.Machine) { c.MapRead(a, LegResult(err), set) })
}

// clearIntent is one of the steps that clear intent bits.
func (m *Mirror) clearIntent(a core.Action) {
	ctx, cancel := context.WithTimeout(m.ctx, m.opt.OpenTimeout)
	defer cancel()
	t, err := m.tracker(a.Leg, a.Session)
	switch {
	case err != nil:
	case a.Kind == core.Rotate:
		err = t.Rotate(ctx, a.Seq)
	case a.Kind == core.DropCopied:
		err = t.DropCopied(ctx, a.Seq, a.Progress)
	default:
		var away []volume.Absent
		for _, o := range a.Away {
			away = append(away, volume.Absent{Name: m.name(o.Leg), Progress: o.Progress})
		}
		err = t.DropPrevious(ctx, a.Seq, away)
	}
	if err != nil {
		m.log.Debug("intent bits were not cleared", "replica", m.reps[a.Leg].Node, "error", fmt.Errorf("generation %d: %w", a.Seq, err))
	}
	m.step(func(c *core.Machine) {
		if a.Kind == core.Rotate {
			c.Rotated(a, LegResult(err))
		} else {
			c.Dropped(a, LegResult(err))
		}
	})
}
