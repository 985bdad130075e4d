package attach

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Attachment is a volume attached to this node.
type Attachment struct {
	Volume    volume.ID
	Device    string // the block device node on the host: "/dev/loop3"
	Kind      string // how it is exported: "fuse" or "loop"
	SizeBytes int64  // of the device
	Alive     bool   // false when the export no longer serves I/O and must be made anew
}

// Health is what a user should know about an attached volume, from this node's
// view and the store's.
type Health struct {
	Conditions []volume.Condition
}

func (a *attachment) size() int64 {
	if a.under != nil {
		return a.under.Size()
	}
	return a.loop.size()
}

func (a *attachment) alive() bool {
	if a.under != nil {
		mir, held := a.under.mirror()
		select {
		case <-mir.Stopped():
			if !held { // else it is being replaced
				return false
			}
		default:
		}
	}
	return a.export.Alive()
}

// why says why the attachment is dead.
func (a *attachment) why() error {
	if a.under != nil {
		if mir, _ := a.under.mirror(); mir.Err() != nil {
			return mir.Err()
		}
	}
	return fmt.Errorf("the export is gone: %w", volume.ErrClosed)
}

func (a *attachment) describe() Attachment {
	return Attachment{
		Volume: a.v.ID, Device: a.export.Device(), Kind: string(a.export.Kind()), SizeBytes: a.size(), Alive: a.alive(),
	}
}

// Get returns what is attached here.
func (m *Manager) Get(id volume.ID) (Attachment, bool) {
	a := m.find(id)
	if a == nil {
		return Attachment{}, false
	}
	return a.describe(), true
}

// Volume reads the volume's object.
func (m *Manager) Volume(ctx context.Context, id volume.ID) (volume.Volume, error) {
	return m.opt.Store.Volumes().Get(ctx, id)
}

// SetFormat records the state of the volume's filesystem, under this node's
// epoch. ErrPrecondition when the volume is not attached here.
func (m *Manager) SetFormat(ctx context.Context, id volume.ID, f volume.Format) error {
	return m.update(ctx, id, func(v *volume.Volume) { v.Status.Format = f })
}

// SetCondition records a condition of the volume, under this node's epoch.
// ErrPrecondition when the volume is not attached here.
func (m *Manager) SetCondition(ctx context.Context, id volume.ID, c volume.Condition) error {
	return m.update(ctx, id, func(v *volume.Volume) { v.SetCondition(c) })
}

func (m *Manager) update(ctx context.Context, id volume.ID, apply func(*volume.Volume)) error {
	a := m.find(id)
	if a == nil {
		return fmt.Errorf("volume %s is not attached to %s: %w", id, m.opt.Node, volume.ErrPrecondition)
	}
	if a.under != nil {
		mir, _ := a.under.mirror()
		return mir.Update(ctx, apply)
	}
	_, err := a.loop.claim.Update(ctx, apply)
	return err
}

// Grow waits until the volume's device serves at least size bytes and returns
// what it serves; size 0 only asks.
func (m *Manager) Grow(ctx context.Context, id volume.ID, size int64) (int64, error) {
	a := m.find(id)
	if a == nil {
		return 0, fmt.Errorf("volume %s is not attached to %s: %w", id, m.opt.Node, volume.ErrPrecondition)
	}
	if size > a.size() {
		v, err := m.opt.Store.Volumes().Get(ctx, id)
		if err != nil {
			return 0, err
		}
		if size > v.Spec.SizeBytes {
			return 0, fmt.Errorf("volume %s: %d bytes wanted, but it was expanded to %d: %w", id, size, v.Spec.SizeBytes, volume.ErrOutOfRange)
		}
		if err := a.grow(ctx, size); err != nil {
			return 0, err
		}
	}
	if err := a.export.Resize(ctx, a.size()); err != nil {
		return 0, fmt.Errorf("grow volume %s: %w", id, err)
	}
	return a.size(), nil
}

func (a *attachment) grow(ctx context.Context, size int64) error {
	if a.under != nil {
		mir, _ := a.under.mirror()
		return mir.Grow(ctx, size)
	}
	return a.loop.grow(ctx, size)
}

// Health is the conditions of the volume, with this node's own view of it.
func (m *Manager) Health(ctx context.Context, id volume.ID) (Health, error) {
	v, err := m.opt.Store.Volumes().Get(ctx, id)
	if err != nil {
		return Health{}, err
	}
	if a := m.find(id); a != nil && !a.alive() {
		v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: "NotServed", Message: a.why().Error()})
	}
	return Health{Conditions: v.Status.Conditions}, nil
}

// Pools are this node's pools, as last measured.
func (m *Manager) Pools(context.Context) ([]volume.Pool, error) { return m.opt.Self().Pools, nil }

// Node is this node as registered in the store.
func (m *Manager) Node() volume.Node { return m.opt.Self() }

// Ready says why this node can't attach volumes now, or nil.
func (m *Manager) Ready(ctx context.Context) error {
	m.mu.Lock()
	synced := m.synced
	m.mu.Unlock()
	if !synced {
		return fmt.Errorf("the store's volumes have not been read yet: %w", volume.ErrUnavailable)
	}
	_, err := m.opt.Store.Nodes().Get(ctx, m.opt.Node)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("node %s is not registered yet: %w", m.opt.Node, volume.ErrUnavailable)
	case err != nil:
		return fmt.Errorf("node %s: %w", m.opt.Node, err)
	}
	for _, p := range []volume.Params{{Replicas: 1, Locality: volume.LocalityStrict}, {Replicas: 2}} {
		if c := m.opt.Choose(p); c.Kind == "" {
			return fmt.Errorf("node %s can't export volumes (%s): %s: %w", m.opt.Node, c.Volumes, c.Why, volume.ErrUnsupported)
		}
	}
	return nil
}
