package node

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/attach"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// fakeAttacher attaches volumes to a fakeHost, by the contract of Attacher.
type fakeAttacher struct {
	host *fakeHost
	kind string // of the exports it makes

	mu       sync.Mutex
	volumes  map[volume.ID]volume.Volume // the store
	attached map[volume.ID]attach.Attachment
	next     int
	heldBy   string // another live node, for every volume
	pools    []volume.Pool
}

func newFakeAttacher(h *fakeHost) *fakeAttacher {
	return &fakeAttacher{host: h, kind: "fuse", volumes: map[volume.ID]volume.Volume{}, attached: map[volume.ID]attach.Attachment{}}
}

func (a *fakeAttacher) step(format string, args ...any) error {
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	return a.host.step(true, format, args...)
}

func (a *fakeAttacher) Attach(_ context.Context, id volume.ID) (attach.Attachment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.attached[id]; ok {
		return old, nil
	}
	if a.heldBy != "" {
		return attach.Attachment{}, fmt.Errorf("held by node %s: %w", a.heldBy, volume.ErrHeld)
	}
	if err := a.step("attach"); err != nil {
		return attach.Attachment{}, err
	}
	device := ""
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	for d, of := range a.host.volumes {
		if of == id && a.kind == kindLoop {
			device = d // the kernel kept it
		}
	}
	if device == "" {
		device = fmt.Sprintf("/dev/loop%d", a.next)
		a.next++
	}
	a.host.volumes[device] = id
	a.host.size[id] = a.volumes[id].Spec.SizeBytes
	a.attached[id] = attach.Attachment{Volume: id, Device: device, Kind: a.kind, SizeBytes: a.host.size[id], Alive: true}
	return a.attached[id], nil
}

func (a *fakeAttacher) Detach(_ context.Context, id volume.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.step("detach"); err != nil {
		return err
	}
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	if old, ok := a.attached[id]; ok {
		for _, m := range a.host.mounts {
			if m.Of(old.Device) && old.Alive {
				panic("detached under " + m.Path)
			}
		}
		delete(a.host.volumes, old.Device)
	}
	delete(a.attached, id)
	return nil
}

func (a *fakeAttacher) Get(id volume.ID) (attach.Attachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.attached[id]
	return at, ok
}

func (a *fakeAttacher) Volume(_ context.Context, id volume.ID) (volume.Volume, error) {
	if err := a.step("get volume"); err != nil {
		return volume.Volume{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.volumes[id]
	if !ok {
		return volume.Volume{}, volume.ErrNotFound
	}
	return v.Clone(), nil
}

func (a *fakeAttacher) SetFormat(_ context.Context, id volume.ID, f volume.Format) error {
	if err := a.step("set format %s", f.State); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.attached[id]; !ok {
		return fmt.Errorf("not attached: %w", volume.ErrFenced)
	}
	v := a.volumes[id]
	v.Status.Format = f
	a.volumes[id] = v
	return nil
}

func (a *fakeAttacher) SetCondition(_ context.Context, id volume.ID, c volume.Condition) error {
	if err := a.step("set condition %s", c.Reason); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.attached[id]; !ok {
		return fmt.Errorf("not attached: %w", volume.ErrPrecondition)
	}
	v := a.volumes[id]
	v.SetCondition(c)
	a.volumes[id] = v
	return nil
}

func (a *fakeAttacher) Grow(_ context.Context, id volume.ID, size int64) (int64, error) {
	if err := a.step("grow device"); err != nil {
		return 0, err
	}
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	a.host.size[id] = max(a.host.size[id], size)
	return a.host.size[id], nil
}

func (a *fakeAttacher) Health(_ context.Context, id volume.ID) (attach.Health, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return attach.Health{Conditions: a.volumes[id].Status.Conditions}, nil
}

func (a *fakeAttacher) Pools(context.Context) ([]volume.Pool, error) { return a.pools, nil }
func (a *fakeAttacher) Ready(context.Context) error                  { return nil }

func (a *fakeAttacher) Node() volume.Node {
	return volume.Node{ID: "node-1", MaxVolumes: 100, Topology: map[string]string{volume.TopologyHost: "node-1"}}
}

// die breaks an export, as when its server's process ended by itself.
func (a *fakeAttacher) die(id volume.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attached[id]
	at.Alive = false
	a.attached[id] = at
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	a.host.dead[at.Device] = true
}

// restart forgets everything, as a new process does. Exports that this process
// served are dead; loop devices live on.
func (a *fakeAttacher) restart() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	for id, at := range a.attached {
		if a.kind != kindLoop {
			a.host.dead[at.Device] = true
			delete(a.host.volumes, at.Device)
		}
		delete(a.attached, id)
	}
}
