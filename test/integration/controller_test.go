package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// The controller is killed several times while volumes are made, and again while
// they are deleted. The provisioner repeats its calls, as it does.
func TestControllerKilledHalfWay(t *testing.T) {
	const count = 24
	w := shared(t)
	volumes := make([]kubelet.Volume, count)
	w.whileKilled(count, func(ctx context.Context, i int) error {
		v, err := w.Controller().Create(ctx, kubelet.Spec{Name: fmt.Sprintf("half-way-%d", i), SizeBytes: 64 << 20, Block: true, Params: replicas("3")})
		volumes[i] = v
		return err
	})
	*w.volumes = volumes // deleted in the end, should this fail
	list, err := w.Controller().List(w.ctx)
	w.must(err)
	for _, v := range volumes {
		if !slices.Contains(list, v.ID) {
			t.Errorf("ListVolumes doesn't show %s", v.Spec.Name)
		}
		o := w.object(v)
		if len(o.Status.Replicas) != 3 || o.Status.Phase != volume.PhaseReady {
			t.Errorf("%s is %s with replicas %+v", v.Spec.Name, o.Status.Phase, o.Status.Replicas)
		}
		for _, r := range o.Status.Replicas {
			if st, err := os.Stat(w.Image(o, r.Node)); err != nil || st.Size() != v.SizeBytes {
				t.Errorf("%s on %s: %v", v.Spec.Name, r.Node, err)
			}
		}
	}

	w.whileKilled(count, func(ctx context.Context, i int) error { return w.Controller().Delete(ctx, volumes[i]) })
	w.must(kubelet.Await(w.ctx, "all replicas to be gone", func(context.Context) error { return w.noReplicas(volumes) }))
}

// whileKilled makes count calls at once, each repeated until it succeeds, and
// kills and starts the controller after a quarter of them, and after a half.
func (w *world) whileKilled(count int, call func(ctx context.Context, i int) error) {
	w.t.Helper()
	var done atomic.Int64
	g, ctx := errgroup.WithContext(w.ctx)
	for i := range count {
		g.Go(func() error {
			defer done.Add(1)
			return kubelet.Persist(ctx, fmt.Sprintf("call %d", i), func(ctx context.Context) error { return call(ctx, i) })
		})
	}
	for _, goal := range []int64{int64(count) / 4, int64(count) / 2} {
		w.must(kubelet.Await(ctx, "some calls", func(context.Context) error {
			if n := done.Load(); n < goal {
				return fmt.Errorf("%d of %d", n, goal)
			}
			return nil
		}))
		w.do("kill", "controller")
		w.do("start", "controller")
	}
	w.must(g.Wait())
}

func TestDeleteWithADeadNode(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{Block: true, SizeBytes: usual, Params: replicas("3")})
	o := w.object(v)
	w.do("kill", "n3")
	w.must(w.Controller().Delete(w.ctx, v))
	list, err := w.Controller().List(w.ctx)
	w.must(err)
	if slices.Contains(list, v.ID) {
		t.Error("ListVolumes still shows it")
	}
	for _, node := range []volume.NodeID{"n1", "n2"} {
		if _, err := os.Stat(w.Image(o, node)); !os.IsNotExist(err) {
			t.Errorf("the replica on %s is still there: %v", node, err)
		}
	}
	// The name is free again, and its new replica is another one.
	again := w.create(kubelet.Spec{Block: true, SizeBytes: usual, Params: replicas("2")})
	w.do("start", "n3")
	w.awaitGone(w.Image(o, "n3"))
	w.attach("n1", again)
}

func TestDeleteOfADeadHoldersVolume(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("3")})
	o := w.object(v)
	writer := w.write(ring(w.attach("n3", v) + "/log"))
	w.do("kill", "n3")
	writer.Stop()
	// While its lease may be fresh nobody knows that it is dead.
	err := w.Controller().Delete(w.ctx, v)
	if err != nil {
		w.expect(err, codes.FailedPrecondition, "n3")
	}
	w.must(kubelet.Persist(w.ctx, "delete", func(ctx context.Context) error { return w.Controller().Delete(ctx, v) }))
	w.do("start", "n3")
	w.must(w.Node("n3").Detach(w.ctx, v))
	for _, node := range []volume.NodeID{"n1", "n2", "n3"} {
		w.awaitGone(w.Image(o, node))
	}
}

func (w *world) awaitGone(path string) {
	w.t.Helper()
	w.must(kubelet.Await(w.ctx, path+" to be gone", func(context.Context) error {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			return errors.Join(errors.New("it is there"), err)
		}
		return nil
	}))
}
