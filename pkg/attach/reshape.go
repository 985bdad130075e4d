package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

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
		if c := v.Clone(); v.Status.Epoch == mir.Epoch() && c.FollowPlaces(time.Time{}) {
			m.reshaping[id] = true
			due = append(due, id)
		}
	}
	return due
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
	if v, err := m.opt.Store.Volumes().Get(ctx, id); err != nil || !v.FollowPlaces(time.Time{}) {
		return // the watch was behind, or will tell again
	}
	began := time.Now()
	a.under.hold()
	old, _ := a.under.mirror()
	next, err := m.handOver(ctx, old, m.options(id))
	a.under.release(next)
	if err != nil {
		m.log.Error("volume in use was lost while its replicas were changed", "volume", id, "error", err)
		return
	}
	m.log.Info("replicas changed", "volume", id, "epoch", next.Epoch(), "took", time.Since(began).Round(time.Millisecond))
}

// handOver closes a mirror, has the volume's replicas follow its places, and opens
// the next. On error it returns the old one, which has ended or is ending: the
// volume was taken by another node, or this process stops. A store or replicas
// that are away are waited for.
func (m *Manager) handOver(ctx context.Context, old *mirror.Mirror, o mirror.Options) (*mirror.Mirror, error) {
	err := old.CloseKeeping(ctx, func(v *volume.Volume) { v.FollowPlaces(time.Now().UTC()) })
	if err != nil {
		return old, err
	}
	for {
		next, err := mirror.Open(ctx, o)
		switch {
		case err == nil:
			return next, nil
		case ctx.Err() != nil, !errors.Is(err, volume.ErrUnavailable):
			return old, fmt.Errorf("open volume %s with other replicas: %w", o.Volume, err)
		}
		m.log.Warn("volume not opened again yet", "volume", o.Volume, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(reopenPause):
		}
	}
}
