package integration

import (
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// Replicas' processes are killed and started again, one after the other, under an
// application: it waits, and no replica falls behind.
func TestReplicasAreRestartedUnderAnApplication(t *testing.T) {
	w := own(t, kubelet.Options{Nodes: 3, PoolSize: "1Gi", Flags: []string{"--rejoin-timeout", "60s"}})
	v := w.block("3")
	o := ring(w.attach("n1", v))
	writer := w.write(o)
	w.awaitSynced(writer)
	before := w.object(v)
	for _, node := range []string{"n2", "n3"} {
		w.do("kill", node)
		w.do("start", node)
		w.awaitSynced(writer)
	}
	after := w.object(v)
	for i, r := range after.Status.Replicas {
		if was := before.Status.Replicas[i]; r.State != volume.InSync || r.Change != was.Change || !r.Since.Equal(was.Since) {
			t.Errorf("replica on %s was %+v, is %+v", r.Node, was, r)
		}
	}
	p := writer.Stop()
	w.must(p.Err)
	w.must(o.Verify(o.Path, p))
	w.must(w.Node("n1").Detach(w.ctx, v))
}
