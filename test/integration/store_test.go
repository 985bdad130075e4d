package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// The data path needs no store, as long as no replica has to be given up. When
// one has to be, writes wait for the store: nobody guesses.
func TestStoreAway(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("3")})
	o := ring(filepath.Join(w.attach("n1", v), "log"))
	writer := w.write(o)

	w.do("kill", "store")
	w.awaitSynced(writer)
	w.do("kill", "n3")
	w.must(kubelet.Await(w.ctx, "the writes to wait", func(ctx context.Context) error {
		p := writer.Progress()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if now := writer.Progress(); now.Written != p.Written {
			return fmt.Errorf("it wrote records %d to %d meanwhile", p.Written, now.Written)
		}
		return nil
	}))
	waiting := writer.Progress()
	w.must(waiting.Err)

	w.do("start", "store")
	w.awaitReplica(v, "n3", volume.Outdated)
	w.awaitSynced(writer)
	w.do("start", "n3")
	w.awaitInSync(v)
	p := writer.Stop()
	w.must(p.Err)
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.must(o.Verify(filepath.Join(w.attach("n3", v), "log"), p))
}

// A node that hangs while a volume is made: the call ends, and once it goes on a
// repetition makes the volume.
func TestCreateWithAFrozenNode(t *testing.T) {
	w := shared(t)
	spec := kubelet.Spec{Name: "frozen", Block: true, SizeBytes: usual, Params: replicas("3")}
	thaw := w.freeze("n3")
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	_, err := w.Controller().Create(ctx, spec)
	if err == nil || ctx.Err() != nil {
		t.Fatalf("expected an error before the deadline, got: %v", err)
	}
	t.Logf("%v", err)
	if code := kubelet.Code(err); code == codes.OK || code == codes.Unknown || code == codes.Internal {
		t.Errorf("it has code %s", code)
	}
	thaw()
	w.must(kubelet.Persist(w.ctx, "create", func(ctx context.Context) error {
		v, err := w.Controller().Create(ctx, spec)
		*w.volumes = []kubelet.Volume{v}
		return err
	}))
	v := (*w.volumes)[0]
	if o := w.object(v); len(o.Status.Replicas) != 3 || o.CountState(volume.InSync) != 3 {
		t.Errorf("its replicas are %+v", o.Status.Replicas)
	}
	w.attach("n1", v)
}
