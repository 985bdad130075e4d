package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A volume is reshaped when the list of its replicas is to change, or when it is to
// grow while a replica is behind or away, which a mirror can't do while it serves.
// The list of a volume's replicas changes only while no mirror is open, so that a
// mirror never meets a replica that it doesn't know, nor misses one. For a volume
// in use the mirror is closed and opened under the export, which parks its
// requests meanwhile: some tens of milliseconds. The volume stays held by this
// node all the time, so nobody can take it in between.

// reopenPause lies between attempts to open the volume again.
const reopenPause = 500 * time.Millisecond

// dueReshapes reserves the attached volumes whose replicas should change now.
func (m *Manager) dueReshapes() []volume.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var due []volume.ID
	for id, a := range m.attached {
		v, ok := m.seen[id]
		if !ok || a.under == nil || m.reshaping[id] {
			continue
		}
		mir, _ := a.under.mirror()
		if v.Status.Epoch == mir.Epoch() && reshapeDue(&v) {
			m.reshaping[id] = true
			due = append(due, id)
		}
	}
	return due
}

// reshapeDue says whether a volume is to be reshaped. Not while writes wait for
// space: the mirror could not end before there is some.
func reshapeDue(v *volume.Volume) bool {
	if p, ok := v.Condition(volume.ConditionWritesPaused); ok && p.Status {
		return false
	}
	c := v.Clone()
	return c.FollowPlaces(time.Time{}) || growsShort(v)
}

// growsShort says whether a volume is to grow while not all replicas can.
func growsShort(v *volume.Volume) bool {
	inSync := v.CountState(volume.InSync)
	return v.Spec.SizeBytes > v.Status.SizeBytes && inSync > 0 && inSync < len(v.Status.Replicas)
}

// reshape has an attached volume's replicas follow its places.
func (m *Manager) reshape(ctx context.Context, id volume.ID) {
	defer func() {
		m.mu.Lock()
		delete(m.reshaping, id)
		m.mu.Unlock()
	}()
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	a := m.find(id)
	if a == nil || !a.alive() {
		return
	}
	v, err := m.opt.Store.Volumes().Get(ctx, id)
	if err != nil || !reshapeDue(&v) {
		return // the watch was behind, or will tell again
	}
	began := time.Now()
	old, _ := a.under.mirror()
	change := m.changes(ctx, old, &v)
	if change == nil {
		return
	}
	a.under.hold()
	next, err := m.handOver(ctx, old, handing{change: change, options: m.options(id)})
	a.under.release(next)
	if err != nil {
		m.log.Error("volume in use was lost while its replicas were changed", "volume", id, "error", err)
		return
	}
	m.log.Info("volume reshaped", "volume", id, "epoch", next.Epoch(), "sizeBytes", next.Size(), "took", time.Since(began).Round(time.Millisecond))
	m.resized(id)
}

// changes prepares what is to change in the object: the list of replicas, and the
// size once all in-sync replicas have it. Nil: nothing, after all. What it returns
// does nothing the second time.
func (m *Manager) changes(ctx context.Context, mir *mirror.Mirror, v *volume.Volume) func(*volume.Volume) {
	if mir.Serving().Dirty > 0 { // the end would not be a clean one: soon
		return nil
	}
	size := int64(0)
	if growsShort(v) {
		gctx, cancel := context.WithTimeout(ctx, growTimeout)
		defer cancel()
		if err := mir.GrowReplicas(gctx, v.Spec.SizeBytes); err != nil {
			m.log.Warn("volume not grown", "volume", v.ID, "error", err)
		} else {
			size = v.Spec.SizeBytes
		}
	}
	c := v.Clone()
	if size == 0 && !c.FollowPlaces(time.Time{}) {
		return nil
	}
	return func(v *volume.Volume) {
		v.FollowPlaces(time.Now().UTC())
		v.Status.SizeBytes = max(v.Status.SizeBytes, size)
	}
}

// growTimeout bounds the growing of the in-sync replicas.
const growTimeout = 10 * time.Second

// handing is how a mirror is handed over.
type handing struct {
	change  func(*volume.Volume)
	options mirror.Options // of the next
}

// handOver closes a mirror, stores the change, and opens the next mirror. On error it returns the old one, which has ended or is ending: the
// volume was taken by another node, or this process stops. A store or replicas
// that are away are waited for.
func (m *Manager) handOver(ctx context.Context, old *mirror.Mirror, h handing) (*mirror.Mirror, error) {
	if err := old.CloseKeeping(ctx, h.change); err != nil {
		return old, err
	}
	for {
		next, err := mirror.Open(ctx, h.options)
		switch {
		case err == nil:
			return next, nil
		case ctx.Err() != nil, isFinal(err):
			return old, fmt.Errorf("open volume %s with other replicas: %w", h.options.Volume, err)
		}
		m.log.Warn("volume not opened again yet", "volume", h.options.Volume, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(reopenPause):
		}
	}
}

// isFinal says whether an opening that failed will fail again: the volume is
// another's, or gone, or not to be opened. Anything else may be a store or a
// network that is away.
func isFinal(err error) bool {
	for _, final := range []error{volume.ErrFenced, volume.ErrHeld, volume.ErrNotFound, volume.ErrPrecondition, volume.ErrFailed, volume.ErrCorrupt} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}
