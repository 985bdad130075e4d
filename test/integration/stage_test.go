package integration

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// expect fails unless err has the code and names something.
func (w *world) expect(err error, code codes.Code, names string) {
	w.t.Helper()
	if kubelet.Code(err) != code || err != nil && !strings.Contains(err.Error(), names) {
		w.t.Fatalf("expected %s that names %q, got: %v", code, names, err)
	}
}

func TestSecondNodeWaitsForTheHolder(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("3")})
	path := w.attach("n1", v)
	set, err := workload.WriteFiles(w.ctx, path, 1, 4, 8<<20)
	w.must(err)

	t.Run("is refused before its deadline, with nothing left", func(t *testing.T) {
		w := w.in(t)
		ctx, cancel := context.WithTimeout(w.ctx, 8*time.Second)
		defer cancel()
		err := w.Node("n2").Stage(ctx, v)
		w.expect(err, codes.FailedPrecondition, "n1")
		if ctx.Err() != nil {
			t.Error("the answer came after the deadline")
		}
		if _, err := os.Stat(w.Node("n2").StagingPath(v)); !os.IsNotExist(err) {
			t.Errorf("the staging directory could not be removed: %v", err)
		}
		if h := w.object(v).Status.Holder; h == nil || h.Node != "n1" {
			t.Errorf("the holder is %+v", h)
		}
		if err := set.Verify(w.ctx, path); err != nil {
			t.Error(err)
		}
	})

	t.Run("is served when the first node lets go", func(t *testing.T) {
		w := w.in(t)
		const waiting = "waiting for the volume's holder"
		before := w.logged("n2", waiting)
		staged := make(chan error, 1)
		go func() { staged <- w.Node("n2").Stage(w.ctx, v) }()
		w.awaitLog("n2", waiting, before)
		w.must(w.Node("n1").Detach(w.ctx, v))
		w.must(<-staged)
		path, err := w.Node("n2").Publish(w.ctx, v)
		w.must(err)
		w.must(set.Verify(w.ctx, path))
	})
}

func TestDeleteWhileStaged(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("2")})
	path := w.attach("n1", v)
	set, err := workload.WriteFiles(w.ctx, path, 2, 2, 4<<20)
	w.must(err)
	w.expect(w.Controller().Delete(w.ctx, v), codes.FailedPrecondition, "n1")
	w.must(set.Verify(w.ctx, path))
	w.must(w.Node("n1").Detach(w.ctx, v))
	for range 2 { // deleting is idempotent
		w.must(w.Controller().Delete(w.ctx, v))
	}
	w.must(w.noReplicas([]kubelet.Volume{v}))
}

func TestCallsInTheWrongOrder(t *testing.T) {
	w := shared(t)
	n := w.Node("n1")
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("2")})
	missing := kubelet.Volume{ID: "hv-00000000000000000000000000000000", Spec: kubelet.Spec{Name: "missing"}}
	staged := w.create(kubelet.Spec{Name: "-staged", SizeBytes: usual, Params: replicas("2")})
	w.must(n.Stage(w.ctx, staged))
	for _, tc := range []struct {
		name string
		call func() error
		code codes.Code
	}{
		{"stage without create", func() error { return n.Stage(w.ctx, missing) }, codes.NotFound},
		{"publish without create", func() error { _, err := n.Publish(w.ctx, missing); return err }, codes.NotFound},
		{"publish without stage", func() error { _, err := n.Publish(w.ctx, v); return err }, codes.FailedPrecondition},
		{"publish at another staging path", func() error { return publishFrom(w, staged, n.StagingPath(v)) }, codes.FailedPrecondition},
		{"expand without create", func() error { _, err := w.Controller().Expand(w.ctx, missing, gib); return err }, codes.NotFound},
		{"expand on a node where it isn't", func() error { _, err := n.Expand(w.ctx, v, gib); return err }, codes.NotFound},
		{"stats of what isn't published", func() error { _, err := n.Stats(w.ctx, v); return err }, codes.NotFound},
		{"unpublish of what was never published", func() error { return n.Unpublish(w.ctx, v) }, codes.OK},
		{"unstage of what was never staged", func() error { return n.Unstage(w.ctx, v) }, codes.OK},
		{"unstage without create", func() error { return n.Unstage(w.ctx, missing) }, codes.OK},
		{"delete without create", func() error { return w.Controller().Delete(w.ctx, missing) }, codes.OK},
		{"unstage what is published", func() error {
			if _, err := n.Publish(w.ctx, staged); err != nil {
				return err
			}
			return n.Unstage(w.ctx, staged)
		}, codes.FailedPrecondition},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(); kubelet.Code(err) != tc.code {
				t.Errorf("expected %s, got: %v", tc.code, err)
			}
		})
	}
}

func publishFrom(w *world, v kubelet.Volume, staging string) error {
	n := w.Node("n1")
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	return n.Call(w.ctx, func(ctx context.Context, c csipb.NodeClient) error {
		_, err := c.NodePublishVolume(ctx, &csipb.NodePublishVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: staging, TargetPath: n.TargetPath(v), VolumeCapability: v.Spec.Capability(),
		})
		return err
	})
}
