package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/admin"
	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

const small = int64(64) << 20

// repairing is a standalone of four nodes that repairs soon.
func repairing(t *testing.T) *world {
	return own(t, kubelet.Options{Nodes: 4, PoolSize: "1Gi", Flags: []string{"--repair-delay", "1s", "--holder-grace", "4s", "--replace-after", "4s"}})
}

// ctl runs kubectl-holdfast.
func (w *world) ctl(args ...string) (string, error) {
	w.t.Helper()
	bin, err := built()
	w.must(err)
	cmd := exec.CommandContext(w.ctx, filepath.Join(bin, "kubectl-holdfast"), append(args, "--dir", w.Dir())...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *world) mustCtl(args ...string) string {
	w.t.Helper()
	out, err := w.ctl(args...)
	if err != nil {
		w.t.Fatalf("kubectl-holdfast %v: %v\n%s", args, err, out)
	}
	return out
}

// report is what `describe -o json` tells.
func (w *world) report(v kubelet.Volume) admin.VolumeReport {
	w.t.Helper()
	var r admin.VolumeReport
	w.must(json.Unmarshal([]byte(w.mustCtl("describe", v.ID, "-o", "json")), &r))
	return r
}

// awaitHealthy waits until the volume's replicas are in sync on just these nodes.
func (w *world) awaitHealthy(v kubelet.Volume, nodes ...string) {
	w.t.Helper()
	w.must(kubelet.Await(w.ctx, fmt.Sprintf("volume %s to be healthy on %v", v.Spec.Name, nodes), func(ctx context.Context) error {
		o, err := w.Volume(ctx, v)
		if err != nil {
			return err
		}
		var on []string
		for _, r := range o.Status.Replicas {
			on = append(on, string(r.Node))
		}
		slices.Sort(on)
		if !o.Settled() || !slices.Equal(on, nodes) {
			return fmt.Errorf("it is %+v, places %v", o.Status, o.Spec.Places)
		}
		return nil
	}))
}

// awaitReleased waits until nobody holds the volume.
func (w *world) awaitReleased(v kubelet.Volume) {
	w.t.Helper()
	w.must(kubelet.Await(w.ctx, "the volume to be released", func(ctx context.Context) error {
		o, err := w.Volume(ctx, v)
		if err == nil && (o.Status.Holder != nil || !o.Status.Clean) {
			err = fmt.Errorf("holder %+v, clean %t", o.Status.Holder, o.Status.Clean)
		}
		return err
	}))
}

// files says on which nodes the volume has files.
func (w *world) files(v kubelet.Volume) []string {
	w.t.Helper()
	var on []string
	for _, n := range w.Nodes() {
		metas, err := filepath.Glob(filepath.Join(w.Dir(), n.Name, "pool", "replicas", "*", "meta.json"))
		w.must(err)
		for _, m := range metas {
			if b, err := os.ReadFile(m); err == nil && strings.Contains(string(b), v.ID) {
				on = append(on, n.Name)
			}
		}
	}
	return on
}

func (w *world) block(count string) kubelet.Volume {
	w.t.Helper()
	return w.create(kubelet.Spec{Block: true, SizeBytes: small, Params: replicas(count), On: "n1"})
}

// others are the nodes without those of the volume's replicas.
func (w *world) others(v kubelet.Volume) (has, not []string) {
	for _, n := range w.Nodes() {
		o := w.object(v)
		if o.ReplicaOn(volume.NodeID(n.Name)) >= 0 {
			has = append(has, n.Name)
		} else {
			not = append(not, n.Name)
		}
	}
	return has, not
}

// Nobody uses the volume, and nobody does anything: its replicas get in sync, and
// what is left of a dead holder goes.
func TestRepairOfVolumesThatNobodyUses(t *testing.T) {
	w := repairing(t)
	v := w.block("3")
	has, _ := w.others(v)
	pattern := workload.Pattern{Seed: 3, Bytes: 8 << 20}
	path := w.attach("n1", v)
	last := has[len(has)-1]
	w.do("kill", last)
	w.must(pattern.Write(w.ctx, path))
	w.awaitReplica(v, last, volume.Outdated)
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.do("start", last)
	w.awaitHealthy(v, has...)
	w.awaitReleased(v)

	// The node that uses it dies for good, unclean.
	path = w.attach(last, v)
	w.must(pattern.Verify(w.ctx, path))
	pattern.Seed = 4
	w.must(pattern.Write(w.ctx, path))
	w.do("kill", last)
	w.must(kubelet.Await(w.ctx, "the dead holder to be released", func(ctx context.Context) error {
		o, err := w.Volume(ctx, v)
		if err == nil && (o.Status.Holder != nil || !o.Status.Clean) {
			err = fmt.Errorf("holder %+v", o.Status.Holder)
		}
		return err
	}))
	w.do("start", last)
	w.must(w.Node(last).Detach(w.ctx, v))
	w.awaitReleased(v)
	w.must(pattern.Verify(w.ctx, w.attach("n1", v)))
	w.must(w.Node("n1").Detach(w.ctx, v))
}

// While an application writes: a node that stays away is replaced and cleaned up
// when it returns, replicas are added and removed, a node is evicted. The
// application sees none of it.
func TestReplicasMoveUnderAnApplication(t *testing.T) {
	w := repairing(t)
	v := w.block("3")
	has, not := w.others(v)
	o := ring(w.attach("n1", v))
	o.Records = 256
	writer := w.write(o)

	gone, spare := has[len(has)-1], not[0]
	w.do("kill", gone)
	now := slices.Sorted(slices.Values(append(slices.Clone(has[:len(has)-1]), spare)))
	w.awaitHealthy(v, now...)
	w.awaitSynced(writer)
	w.do("start", gone)
	w.must(kubelet.Await(w.ctx, "the old replica's files to go", func(context.Context) error {
		if f := w.files(v); len(f) != 3 {
			return fmt.Errorf("files on %v", f)
		}
		return nil
	}))

	w.mustCtl("replicas", v.ID, "4")
	w.awaitHealthy(v, "n1", "n2", "n3", "n4")
	w.mustCtl("replicas", v.Spec.Name, "2")
	w.must(kubelet.Await(w.ctx, "two replicas to be left", func(context.Context) error {
		if n := len(w.object(v).Status.Replicas); n != 2 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	}))
	w.awaitSynced(writer)

	has, _ = w.others(v)
	leave := has[len(has)-1]
	w.mustCtl("evict", leave)
	w.must(kubelet.Await(w.ctx, leave+" to be empty", func(context.Context) error {
		if f := w.files(v); len(f) != 2 || slices.Contains(f, leave) {
			return fmt.Errorf("files on %v", f)
		}
		return nil
	}))
	w.mustCtl("evict", leave, "--cancel")
	w.awaitSynced(writer)
	p := writer.Stop()
	w.must(p.Err)
	w.must(w.Node("n1").Detach(w.ctx, v))
	for _, r := range w.object(v).Status.Replicas {
		w.must(o.Verify(w.attach(string(r.Node), v), p))
		w.must(w.Node(string(r.Node)).Detach(w.ctx, v))
	}
	if r := w.report(v); r.Health != admin.Healthy {
		t.Errorf("%+v", r)
	}
}

// The only in-sync replica's node is gone. Nothing happens by itself; an
// administrator is told what would be lost, and then gets it.
func TestPromote(t *testing.T) {
	w := repairing(t)
	v := w.block("2")
	has, _ := w.others(v)
	path := w.attach("n1", v)
	other := has[slices.IndexFunc(has, func(n string) bool { return n != "n1" })]
	old := workload.Pattern{Seed: 1, Bytes: 4 << 20}
	w.must(old.Write(w.ctx, path))
	w.do("kill", "controller") // else the replica would be replaced
	w.do("kill", other)
	w.awaitReplica(v, other, volume.Outdated)
	lost := workload.Pattern{Seed: 2, Off: 8 << 20, Bytes: 4 << 20}
	w.must(lost.Write(w.ctx, path))
	w.do("kill", "n1")
	w.do("start", other)

	out, err := w.ctl("promote", v.ID, other)
	if err == nil || !strings.Contains(out, "lost for good") || !strings.Contains(out, "nothing was changed") {
		t.Fatalf("without consent: %v\n%s", err, out)
	}
	w.mustCtl("promote", v.ID, other, "--accept-data-loss")
	path = w.attach(other, v)
	w.must(old.Verify(w.ctx, path))
	if err := lost.Verify(w.ctx, path); err == nil {
		t.Error("what was written without the replica is there")
	}
	if r := w.report(v); !slices.ContainsFunc(r.Conditions, func(c volume.Condition) bool { return c.Type == volume.ConditionDataLossAccepted }) {
		t.Errorf("conditions %+v", r.Conditions)
	}
	w.do("start", "n1")
	w.do("start", "controller")
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.awaitInSync(v)
	w.must(w.Node(other).Detach(w.ctx, v))
	w.must(old.Verify(w.ctx, w.attach("n1", v)))
	w.must(w.Node("n1").Detach(w.ctx, v))
}

// The store is lost. The nodes register with an empty one, and the volumes are
// made again from what the replicas know.
func TestRebuildStore(t *testing.T) {
	w := repairing(t)
	v := w.block("3")
	has, _ := w.others(v)
	pattern := workload.Pattern{Seed: 9, Bytes: 8 << 20}
	w.must(pattern.Write(w.ctx, w.attach("n1", v)))
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.awaitReleased(v)
	before := w.object(v)
	if out, err := w.ctl("rebuild-store"); err == nil || !strings.Contains(out, "nothing was changed") {
		t.Fatalf("over a store that has volumes: %v\n%s", err, out)
	}
	names := []string{"n1", "n2", "n3", "n4", "controller", "store"}
	for _, n := range names {
		w.do("stop", n)
	}
	w.must(os.RemoveAll(filepath.Join(w.Dir(), "store", "data")))
	slices.Reverse(names)
	for _, n := range names {
		w.do("start", n)
	}
	var rebuilt []admin.Rebuilt
	w.must(kubelet.Await(w.ctx, "the nodes to register", func(context.Context) error {
		out, err := w.ctl("status", "-o", "json")
		var r admin.Report
		if err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		if err == nil && (len(r.Nodes) != 4 || slices.ContainsFunc(r.Nodes, func(n admin.NodeReport) bool { return !n.Answers })) {
			err = errors.New("not all are there")
		}
		return err
	}))
	w.must(json.Unmarshal([]byte(w.mustCtl("rebuild-store", "-o", "json")), &rebuilt))
	if len(rebuilt) != 1 || !rebuilt[0].Done || len(rebuilt[0].InSync) != 3 || rebuilt[0].UID != before.UID {
		t.Fatalf("%+v", rebuilt)
	}
	w.must(pattern.Verify(w.ctx, w.attach("n2", v)))
	w.must(w.Node("n2").Detach(w.ctx, v))
	w.awaitHealthy(v, has...)
}
