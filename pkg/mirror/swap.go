package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// swapTimeout bounds one attempt; swapPause lies between attempts while the
// store is away. Nothing is acknowledged in the meantime that must not be.
const (
	swapTimeout = 5 * time.Second
	swapPause   = 200 * time.Millisecond
)

// swap carries out one compare-and-swap and reports how it ended.
func (m *Mirror) swap(w *core.Wants) {
	if w.Take {
		m.take()
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, swapTimeout)
	defer cancel()
	v, err := m.claim.Update(ctx, func(v *volume.Volume) { m.apply(v, w) })
	res := swapResult(err)
	switch res {
	case core.Unknown:
		m.log.Warn("the store did not answer; the volume waits where it must", "error", err)
		m.pause()
	case core.OK:
		m.logStates(v)
		m.logResyncs(v)
	}
	m.step(func(c *core.Machine) { c.SwapDone(res) })
}

func swapResult(err error) core.Result {
	switch {
	case err == nil:
		return core.OK
	case errors.Is(err, volume.ErrFenced), errors.Is(err, volume.ErrNotFound):
		return core.Fenced
	}
	return core.Unknown
}

// take is the first swap: the next epoch, with this node as holder.
func (m *Mirror) take() {
	ctx, cancel := context.WithTimeout(m.ctx, swapTimeout)
	defer cancel()
	m.claim.Repair = m.opt.Repair
	v, was, err := m.claim.Take(ctx, func(v volume.Volume) error {
		if !slices.EqualFunc(v.Status.Replicas, m.reps, func(a, b volume.Replica) bool { return a.Node == b.Node }) {
			return fmt.Errorf("its replicas changed: %w", volume.ErrConflict)
		}
		return m.opt.MayTake(v)
	})
	if err != nil {
		m.step(func(c *core.Machine) {
			if c.Phase() != core.Stopped { // else who stopped it may be reading
				m.takeErr = err
			}
			c.TakeDone(swapOrLost(err), core.Taken{})
		})
		return
	}
	m.taken(v, was)
}

func (m *Mirror) taken(v, was volume.Volume) {
	t := core.Taken{Size: v.Status.SizeBytes, WasClean: was.Status.Clean}
	for _, r := range v.Status.Replicas {
		t.States = append(t.States, r.State)
		t.Reasons = append(t.Reasons, r.Reason)
		t.Changes = append(t.Changes, r.Change)
		t.Incarnations = append(t.Incarnations, r.Incarnation)
	}
	if c, ok := v.Condition(volume.ConditionWritesPaused); ok {
		t.Paused = c.Status
	}
	m.step(func(c *core.Machine) { c.TakeDone(core.OK, t) })
}

func swapOrLost(err error) core.Result {
	if res := swapResult(err); res != core.Unknown {
		return res
	}
	return core.Lost
}

// apply writes what the machine wants into the volume's status.
func (m *Mirror) apply(v *volume.Volume, w *core.Wants) {
	now := time.Now().UTC()
	for i := range v.Status.Replicas {
		r := &v.Status.Replicas[i]
		if r.State != w.States[i] {
			r.State, r.Since = w.States[i], now
		}
		r.Reason, r.Change, r.Incarnation = w.Reasons[i], w.Changes[i], w.Incarnations[i]
	}
	v.Status.SizeBytes = w.Size
	if w.Release {
		v.Status.Clean = w.Clean
		if !m.claim.keep.Load() {
			v.Status.Holder = nil
		}
	}
	setDegraded(v, now)
	paused := volume.Condition{Type: volume.ConditionWritesPaused, Reason: "SpaceAvailable", Message: "writes go on", Since: now}
	if w.Paused {
		paused = volume.Condition{Type: volume.ConditionWritesPaused, Status: true, Reason: "PoolFull", Since: now,
			Message: "a replica's pool is full; writes wait until it has space"}
	}
	if _, had := v.Condition(volume.ConditionWritesPaused); had || w.Paused {
		v.SetCondition(paused)
	}
}

func setDegraded(v *volume.Volume, now time.Time) {
	var away []string
	for _, r := range v.Status.Replicas {
		if r.State != volume.InSync {
			away = append(away, fmt.Sprintf("%s is %s (%s)", r.Node, r.State, r.Reason))
		}
	}
	c := volume.Condition{Type: volume.ConditionDegraded, Reason: "AllInSync", Message: "all replicas are in sync", Since: now}
	if len(away) > 0 {
		c.Status, c.Reason = true, "ReplicasNotInSync"
		c.Message = fmt.Sprintf("%d of %d replicas are in sync: %s", len(v.Status.Replicas)-len(away), len(v.Status.Replicas), strings.Join(away, "; "))
	}
	v.SetCondition(c)
}

// releaseUnclean gives the lock back after the mirror stopped by itself: the
// volume stays unclean, and says what happened.
func (m *Mirror) releaseUnclean(ctx context.Context) error {
	return m.claim.Release(ctx, func(v *volume.Volume) {
		v.Status.Clean = false
		if _, lost := v.LostData(); lost {
			return // the graver of the two stays
		}
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: "Stopped", Message: m.stopErr.Error(), Since: time.Now().UTC()})
	})
}

func (m *Mirror) logStates(v volume.Volume) {
	for _, r := range v.Status.Replicas {
		if r.State != volume.InSync {
			m.log.Warn("replica not in sync", "replica", r.Node, "replicaState", r.State, "reason", r.Reason, "epoch", m.Epoch())
		}
	}
	if v.CountState(volume.InSync) == len(v.Status.Replicas) {
		m.log.Info("all replicas in sync", "epoch", m.Epoch())
	}
}
