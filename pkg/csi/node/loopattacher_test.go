package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/attach"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// loopAttacher attaches volumes as loop devices on files, by the contract of
// Attacher: everything of the node but the replication is then real.
type loopAttacher struct {
	dir string

	mu       sync.Mutex
	volumes  map[volume.ID]volume.Volume
	attached map[volume.ID]attach.Attachment
}

// newLoopAttacher makes one whose devices are gone at the end of the test.
func newLoopAttacher(t *testing.T) *loopAttacher {
	t.Helper()
	a := &loopAttacher{dir: t.TempDir(), volumes: map[volume.ID]volume.Volume{}, attached: map[volume.ID]attach.Attachment{}}
	t.Cleanup(func() {
		for id := range a.attached {
			if err := a.Detach(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
	})
	return a
}

// create makes a volume in the store, with its file.
func (a *loopAttacher) create(spec volume.Spec) (volume.Volume, error) {
	v := volume.Volume{ID: volume.IDFor(spec.Name), Spec: spec, Status: volume.Status{Phase: volume.PhaseReady, SizeBytes: spec.SizeBytes}}
	f, err := os.Create(a.file(v.ID))
	if err != nil {
		return volume.Volume{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.volumes[v.ID] = v
	return v, errors.Join(f.Truncate(spec.SizeBytes), f.Close())
}

// expand grows a volume in the store; its device follows with Grow or Attach.
func (a *loopAttacher) expand(id volume.ID, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[id]
	v.Spec.SizeBytes = size
	a.volumes[id] = v
}

func (a *loopAttacher) file(id volume.ID) string { return filepath.Join(a.dir, string(id)) }

func (a *loopAttacher) Attach(_ context.Context, id volume.ID) (attach.Attachment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.attached[id]; ok {
		return old, nil
	}
	size := a.volumes[id].Spec.SizeBytes
	if err := os.Truncate(a.file(id), size); err != nil {
		return attach.Attachment{}, err
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", a.file(id)).CombinedOutput()
	if err != nil {
		return attach.Attachment{}, fmt.Errorf("losetup: %w: %s", err, out)
	}
	a.attached[id] = attach.Attachment{Volume: id, Device: strings.TrimSpace(string(out)), Kind: kindLoop, SizeBytes: size, Alive: true}
	return a.attached[id], nil
}

func (a *loopAttacher) Detach(_ context.Context, id volume.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.attached[id]
	if !ok {
		return nil
	}
	if out, err := exec.Command("losetup", "--detach", at.Device).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	delete(a.attached, id)
	return nil
}

func (a *loopAttacher) Get(id volume.ID) (attach.Attachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.attached[id]
	return at, ok
}

func (a *loopAttacher) Volume(_ context.Context, id volume.ID) (volume.Volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.volumes[id]
	if !ok {
		return volume.Volume{}, volume.ErrNotFound
	}
	return v.Clone(), nil
}

func (a *loopAttacher) SetFormat(_ context.Context, id volume.ID, f volume.Format) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[id]
	v.Status.Format = f
	a.volumes[id] = v
	return nil
}

func (a *loopAttacher) SetCondition(_ context.Context, id volume.ID, c volume.Condition) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[id]
	v.SetCondition(c)
	a.volumes[id] = v
	return nil
}

func (a *loopAttacher) Grow(_ context.Context, id volume.ID, size int64) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := os.Truncate(a.file(id), size); err != nil {
		return 0, err
	}
	if out, err := exec.Command("losetup", "--set-capacity", a.attached[id].Device).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("losetup: %w: %s", err, out)
	}
	return size, nil
}

func (a *loopAttacher) Health(context.Context, volume.ID) (attach.Health, error) {
	return attach.Health{}, nil
}

func (a *loopAttacher) Pools(context.Context) ([]volume.Pool, error) { return nil, nil }
func (a *loopAttacher) Ready(context.Context) error                  { return nil }

func (a *loopAttacher) Node() volume.Node {
	return volume.Node{ID: "node-1", MaxVolumes: 8, Topology: map[string]string{volume.TopologyHost: "node-1"}}
}
