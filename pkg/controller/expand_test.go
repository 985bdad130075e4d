package controller

import (
	"context"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestExpandOfAReleasedVolume(t *testing.T) {
	w := newWorld(t, 3)
	mustCreate(t, w.fresh(), request("v", 3))
	for range 2 {
		v, err := w.fresh().Expand(context.Background(), v1, 2*gib-1)
		wantErr(t, err, nil)
		if v.Spec.SizeBytes != 2*gib || v.Status.SizeBytes != gib {
			t.Errorf("wants %d, serves %d", v.Spec.SizeBytes, v.Status.SizeBytes)
		}
	}
	v, err := w.fresh().Expand(context.Background(), v1, gib) // never smaller
	wantErr(t, err, nil)
	if v.Spec.SizeBytes != 2*gib {
		t.Errorf("wants %d", v.Spec.SizeBytes)
	}
}

func TestExpandRefuses(t *testing.T) {
	tests := []struct {
		name   string
		setup  func(*world)
		size   int64
		want   error
		saying string
	}{
		{"no replica is in sync", func(w *world) {
			w.edit(v1, func(v *volume.Volume) {
				v.Status.Replicas[0].State, v.Status.Replicas[1].State = volume.Failed, volume.Outdated
			})
		}, 2 * gib, volume.ErrPrecondition, "none of its replicas is InSync"},
		{"all nodes are away", func(w *world) {
			w.node("n0", func(n *fakeNode) { n.stale = true })
			w.node("n1", func(n *fakeNode) { n.stale = true })
		}, 2 * gib, volume.ErrUnavailable, "node n1"},
		{"larger than a pool", func(*world) {}, 201 * gib, volume.ErrOutOfRange, "could hold at most"},
		{"no room", func(w *world) {
			other := request("other", 2)
			other.Spec.SizeBytes = 150 * gib
			mustCreate(w.t, w.fresh(), other)
		}, 60 * gib, volume.ErrNoSpace, "node n0: pool \"data\" has room for"},
		{"size zero", func(*world) {}, 0, volume.ErrInvalid, "size"},
		{"size without end", func(*world) {}, math.MaxInt64, volume.ErrInvalid, "size"},
		{"a volume being made", func(w *world) { w.edit(v1, func(v *volume.Volume) { v.Status.Phase = volume.PhaseCreating }) }, 2 * gib, volume.ErrNotFound, "Creating"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 2)
			mustCreate(t, w.fresh(), request("v", 2))
			tt.setup(w)
			_, err := w.fresh().Expand(context.Background(), v1, tt.size)
			wantErr(t, err, tt.want)
			if !strings.Contains(err.Error(), tt.saying) {
				t.Errorf("%q does not say %q", err, tt.saying)
			}
			for _, v := range w.volumes() {
				if v.ID == v1 && v.Spec.SizeBytes != gib {
					t.Errorf("the size wanted became %d", v.Spec.SizeBytes)
				}
			}
		})
	}
}

// TestExpandWaitsForTheHolder covers each way in which the wait can end.
func TestExpandWaitsForTheHolder(t *testing.T) {
	grown := func(v *volume.Volume) { v.Status.SizeBytes = v.Spec.SizeBytes }
	tests := []struct {
		name string
		then func(w *world, cancel func())
		want error
	}{
		{"it grows", func(w *world, _ func()) { w.edit(v1, grown) }, nil},
		{"it releases the volume", func(w *world, _ func()) { w.edit(v1, func(v *volume.Volume) { v.Status.Holder = nil }) }, nil},
		{"it dies", func(w *world, _ func()) { w.node("n0", func(n *fakeNode) { n.stale = true }) }, nil},
		{"it loses a replica, and grows", func(w *world, _ func()) {
			w.edit(v1, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated })
			w.edit(v1, grown)
		}, nil},
		{"it loses all replicas", func(w *world, _ func()) {
			w.edit(v1, func(v *volume.Volume) {
				v.Status.Replicas[0].State, v.Status.Replicas[1].State = volume.Outdated, volume.Outdated
			})
		}, volume.ErrPrecondition},
		{"the caller gives up", func(_ *world, cancel func()) { cancel() }, context.Canceled},
		{"the volume goes", func(w *world, _ func()) { w.removeVolume() }, volume.ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			mustCreate(t, w.fresh(), request("v", 2))
			w.edit(v1, heldBy("n0"))
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			seen := make(chan error, 1)
			go func() { seen <- awaitWish(ctx, w) }()
			answered := make(chan error, 1)
			go func() {
				_, err := w.fresh().Expand(ctx, v1, 2*gib)
				answered <- err
			}()
			wantErr(t, <-seen, nil) // the size wanted is recorded, and Expand must wait
			select {
			case err := <-answered:
				t.Fatalf("answered %v while the holder has not grown", err)
			default:
			}
			tt.then(w, cancel)
			wantErr(t, <-answered, tt.want)
		})
	}
}

// remover deletes the volume the first time it is asked about the holder.
type remover struct {
	w    *world
	once sync.Once
}

func (r *remover) Fresh(volume.NodeID) bool {
	r.once.Do(r.w.removeVolume)
	return true
}

func (w *world) removeVolume() {
	v, err := w.store.Volumes().Get(context.Background(), v1)
	if err == nil {
		err = w.store.Volumes().Delete(context.Background(), v)
	}
	if err != nil {
		w.t.Error(err)
	}
}

func TestExpandOfAVolumeThatGoesBeforeTheWatch(t *testing.T) {
	w := newWorld(t, 2)
	v := mustCreate(t, w.fresh(), request("v", 2))
	heldBy("n0")(&v)
	c := w.fresh()
	c.opt.Liveness = &remover{w: w}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := c.awaitSize(ctx, v, 2*gib)
	wantErr(t, err, volume.ErrNotFound)
}

// awaitWish returns when the store has the new size.
func awaitWish(ctx context.Context, w *world) error {
	events, err := w.store.Volumes().Watch(ctx, v1)
	if err != nil {
		return err
	}
	for e := range events {
		if e.Object.Spec.SizeBytes == 2*gib {
			return nil
		}
	}
	return ctx.Err()
}
