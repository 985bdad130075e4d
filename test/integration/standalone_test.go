package integration

import (
	"context"
	"testing"

	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// The process that runs the others is killed while volumes are mounted. Nothing
// stays behind, and the data is there for the next start.
func TestStandaloneKilled(t *testing.T) {
	w := own(t, kubelet.Options{PoolSize: "1Gi"})
	v := w.create(kubelet.Spec{SizeBytes: 512 << 20, Params: replicas("3")})
	local := w.create(kubelet.Spec{Name: "local", SizeBytes: 512 << 20, Params: map[string]string{"replicas": "1", "locality": "strict"}, On: "n2"})
	set, err := workload.WriteFiles(w.ctx, w.attach("n1", v), 1, 4, 8<<20)
	w.must(err)
	setLocal, err := workload.WriteFiles(w.ctx, w.attach("n2", local), 2, 4, 8<<20)
	w.must(err)

	w.must(w.Crash())
	w.must(nothingBut(w.Dir()))

	again, err := kubelet.Start(w.ctx, w.Options())
	w.must(err)
	t.Cleanup(func() { w.check("stop", again.Stop(context.Background())) })
	next := newWorld(t, again)
	next.must(set.Verify(next.ctx, next.attach("n1", v)))
	next.must(setLocal.Verify(next.ctx, next.attach("n2", local)))
}
