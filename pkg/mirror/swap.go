package mirror

import (
	"context"
	"errors"
	"fmt"
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
	v, err := m.update(ctx, func(v *volume.Volume) { m.apply(v, w) })
	res := swapResult(err)
	switch res {
	case core.Unknown:
		m.log.Warn("the store did not answer; the volume waits where it must", "error", err)
		m.pause()
	case core.OK:
		m.logStates(v)
	}
	m.step(func(c *core.Machine) { c.SwapDone(res) })
}

// update re-reads, checks that this mirror still holds the epoch, applies and
// swaps, until it succeeds or can't.
func (m *Mirror) update(ctx context.Context, apply func(*volume.Volume)) (volume.Volume, error) {
	for {
		v, err := m.opt.Volumes.Get(ctx, m.opt.Volume)
		if err != nil {
			return v, err
		}
		if err := m.holds(&v); err != nil {
			return v, err
		}
		apply(&v)
		v, err = m.opt.Volumes.Update(ctx, v)
		if !errors.Is(err, volume.ErrConflict) {
			return v, err
		}
		if ctx.Err() != nil {
			return v, fmt.Errorf("%w: %w", volume.ErrUnavailable, ctx.Err())
		}
	}
}

// holds says whether the volume is still this mirror's.
func (m *Mirror) holds(v *volume.Volume) error {
	switch h := v.Status.Holder; {
	case v.UID != m.uid:
		return fmt.Errorf("volume %s was created anew: %w", v.ID, volume.ErrFenced)
	case v.Status.Epoch != m.epoch:
		return fmt.Errorf("volume %s has epoch %d, this mirror %d: %w", v.ID, v.Status.Epoch, m.epoch, volume.ErrFenced)
	case h == nil || h.Nonce != m.nonce:
		return fmt.Errorf("volume %s is not held by this mirror: %w", v.ID, volume.ErrFenced)
	}
	return nil
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

// take is the first swap: the next epoch, with this node as holder. An answer
// that was lost is recognised by the nonce: the same swap on the same version
// can land only once.
func (m *Mirror) take() {
	ctx, cancel := context.WithTimeout(m.ctx, swapTimeout)
	defer cancel()
	var was volume.Volume // before the swap that landed
	for {
		v, err := m.opt.Volumes.Get(ctx, m.opt.Volume)
		if err != nil {
			m.takeFailed(err)
			return
		}
		if h := v.Status.Holder; h != nil && h.Nonce == m.nonce {
			m.taken(v, was)
			return
		}
		if err := m.checkTake(&v); err != nil {
			m.takeFailed(err)
			return
		}
		was = v.Clone()
		v.Status.Epoch++
		v.Status.Holder = &volume.Holder{Node: m.opt.Node, Nonce: m.nonce, Since: time.Now().UTC()}
		v.Status.Clean = false
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Reason: "Opened", Message: "the volume was opened", Since: time.Now().UTC()})
		v, err = m.opt.Volumes.Update(ctx, v)
		switch {
		case err == nil:
			m.taken(v, was)
			return
		case errors.Is(err, volume.ErrConflict), errors.Is(err, volume.ErrUnavailable):
			if ctx.Err() != nil {
				m.takeFailed(err)
				return
			}
		default:
			m.takeFailed(err)
			return
		}
	}
}

func (m *Mirror) checkTake(v *volume.Volume) error {
	if v.UID != m.uid {
		return fmt.Errorf("it was created anew: %w", volume.ErrConflict)
	}
	if v.Status.Phase != volume.PhaseReady {
		return fmt.Errorf("it is %s: %w", v.Status.Phase, volume.ErrPrecondition)
	}
	if len(v.Status.Replicas) != len(m.reps) {
		return fmt.Errorf("its replicas changed: %w", volume.ErrConflict)
	}
	for i, r := range v.Status.Replicas {
		if r.Node != m.reps[i].Node {
			return fmt.Errorf("its replicas changed: %w", volume.ErrConflict)
		}
	}
	return m.opt.MayTake(*v)
}

func (m *Mirror) taken(v, was volume.Volume) {
	m.epoch = v.Status.Epoch
	t := core.Taken{Size: v.Status.SizeBytes, WasClean: was.Status.Clean}
	for _, r := range v.Status.Replicas {
		t.States = append(t.States, r.State)
		t.Reasons = append(t.Reasons, r.Reason)
	}
	if c, ok := v.Condition(volume.ConditionWritesPaused); ok {
		t.Paused = c.Status
	}
	m.step(func(c *core.Machine) { c.TakeDone(core.OK, t) })
}

func (m *Mirror) takeFailed(err error) {
	m.takeErr = err
	m.step(func(c *core.Machine) { c.TakeDone(swapOrLost(err), core.Taken{}) })
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
		r.Reason = w.Reasons[i]
	}
	v.Status.SizeBytes = w.Size
	if w.Release {
		v.Status.Holder, v.Status.Clean = nil, w.Clean
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
// volume stays unclean, and says what happened. Being overtaken is fine.
func (m *Mirror) releaseUnclean(ctx context.Context) error {
	_, err := m.update(ctx, func(v *volume.Volume) {
		v.Status.Holder, v.Status.Clean = nil, false
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: "Stopped", Message: m.stopErr.Error(), Since: time.Now().UTC()})
	})
	if err == nil || swapResult(err) == core.Fenced {
		return nil
	}
	return fmt.Errorf("release volume %s: %w", m.opt.Volume, err)
}

func (m *Mirror) logStates(v volume.Volume) {
	for _, r := range v.Status.Replicas {
		if r.State != volume.InSync {
			m.log.Warn("replica not in sync", "replica", r.Node, "replicaState", r.State, "reason", r.Reason, "epoch", m.epoch)
		}
	}
	if v.CountState(volume.InSync) == len(v.Status.Replicas) {
		m.log.Info("all replicas in sync", "epoch", m.epoch)
	}
}
