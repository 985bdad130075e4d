package csi

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// fakeProvisioner keeps volumes in memory by the contract of Provisioner.
type fakeProvisioner struct {
	mu       sync.Mutex
	volumes  map[volume.ID]volume.Volume
	created  controller.CreateRequest   // the last one
	asked    controller.CapacityRequest // the last one
	room     controller.Capacity
	fail     error         // returned by every method
	entered  chan struct{} // if set, Create and Expand announce themselves here ...
	proceed  chan struct{} // ... and wait here
	topology []map[string]string
}

func newFakeProvisioner() *fakeProvisioner {
	return &fakeProvisioner{volumes: map[volume.ID]volume.Volume{}}
}

func (f *fakeProvisioner) pause() {
	if f.entered != nil {
		f.entered <- struct{}{}
		<-f.proceed
	}
}

func (f *fakeProvisioner) Create(_ context.Context, r controller.CreateRequest) (volume.Volume, error) {
	f.pause()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = r
	if f.fail != nil {
		return volume.Volume{}, f.fail
	}
	id := volume.IDFor(r.Spec.Name)
	if v, exists := f.volumes[id]; exists {
		same := v.Spec
		same.SizeBytes, same.Replicas = r.Spec.SizeBytes, r.Spec.Replicas
		if !reflect.DeepEqual(same, r.Spec) || v.Spec.SizeBytes < r.RequiredBytes || r.LimitBytes > 0 && v.Spec.SizeBytes > r.LimitBytes {
			return volume.Volume{}, fmt.Errorf("volume %q: %w", r.Spec.Name, volume.ErrExists)
		}
		return v, nil
	}
	v := volume.Volume{ID: id, Spec: r.Spec, Status: volume.Status{Phase: volume.PhaseReady, SizeBytes: r.Spec.SizeBytes}}
	for i := range r.Spec.Params.Replicas {
		v.Status.Replicas = append(v.Status.Replicas, volume.Replica{Node: volume.NodeID(fmt.Sprintf("node-%d", i)), State: volume.InSync})
	}
	f.volumes[id] = v
	return v, nil
}

func (f *fakeProvisioner) Delete(_ context.Context, id volume.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, id)
	return f.fail
}

func (f *fakeProvisioner) Get(_ context.Context, id volume.ID) (volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, exists := f.volumes[id]
	if !exists {
		return volume.Volume{}, volume.ErrNotFound
	}
	return v.Clone(), f.fail
}

func (f *fakeProvisioner) List(context.Context) ([]volume.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []volume.Volume
	for _, v := range f.volumes {
		all = append(all, v.Clone())
	}
	slices.SortFunc(all, func(a, b volume.Volume) int { return cmp.Compare(a.ID, b.ID) })
	return all, f.fail
}

func (f *fakeProvisioner) Expand(_ context.Context, id volume.ID, size int64) (volume.Volume, error) {
	f.pause()
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.volumes[id]
	v.Spec.SizeBytes = max(size, v.Spec.SizeBytes)
	f.volumes[id] = v
	return v, f.fail
}

func (f *fakeProvisioner) SetReplicas(_ context.Context, id volume.ID, n int) (volume.Volume, error) {
	f.pause()
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.volumes[id]
	err := controller.WantReplicas(&v, n)
	f.volumes[id] = v
	return v, cmp.Or(f.fail, err)
}

func (f *fakeProvisioner) Capacity(_ context.Context, r controller.CapacityRequest) (controller.Capacity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = r
	return f.room, f.fail
}

func (f *fakeProvisioner) Topology(context.Context, volume.Volume) ([]map[string]string, error) {
	return f.topology, nil
}

func (f *fakeProvisioner) Ready(context.Context) error { return f.fail }
