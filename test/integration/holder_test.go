package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

func TestHolderKilledAndStartedAgain(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			w := shared(t)
			spec := k.spec
			spec.SizeBytes, spec.Params = usual, replicas("3")
			v := w.create(spec)
			o := ring(k.at(w.attach("n1", v)))
			writer := w.write(o)
			w.do("kill", "n1")
			<-writer.Done() // its device is gone
			p := writer.Stop()
			if p.Err == nil {
				t.Error("a write on a dead device went through")
			}
			w.do("start", "n1")
			// kubelet finds the mount dead and repeats both calls.
			path := w.attach("n1", v)
			w.must(o.Verify(k.at(path), p))
			w.awaitSynced(w.write(workload.WriterOptions{Path: k.at(path), Off: 64 << 20, Records: 64, SyncEvery: 4, Interval: o.Interval}))
			w.awaitInSync(v)
		})
	}
}

func TestPodsAreMovedFromADeadNode(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			w := shared(t)
			spec := k.spec
			spec.SizeBytes, spec.Params = usual, replicas("3")
			v := w.create(spec)
			o := ring(k.at(w.attach("n1", v)))
			writer := w.write(o)
			epoch := w.object(v).Status.Epoch
			w.do("kill", "n1")
			<-writer.Done()
			p := writer.Stop()

			path := w.attach("n2", v) // waits until the lease has run out
			w.must(o.Verify(k.at(path), p))
			if s := w.object(v).Status; s.Epoch <= epoch || s.Holder == nil || s.Holder.Node != "n2" {
				t.Errorf("epoch %d after %d, holder %+v", s.Epoch, epoch, s.Holder)
			}
			second := w.write(workload.WriterOptions{Path: k.at(path), Off: 64 << 20, Records: 64, SyncEvery: 4, Interval: o.Interval})

			// The dead node comes back: its kubelet cleans up, nobody is disturbed,
			// and its replica is made equal again.
			w.do("start", "n1")
			w.must(w.Node("n1").Detach(w.ctx, v))
			w.awaitSynced(second)
			w.awaitInSync(v)
			if h := w.object(v).Status.Holder; h == nil || h.Node != "n2" {
				t.Errorf("the holder is %+v", h)
			}
			w.must(o.Verify(k.at(path), p))
		})
	}
}

// A holder that was only frozen comes back after another node has taken over. It
// still has writes to do, and must not be able to do them.
func TestFrozenHolderIsFenced(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{Block: true, SizeBytes: usual, Params: replicas("3")})
	o := ring(w.attach("n1", v))
	writer := w.write(o)
	thaw := w.freeze("n1")

	path := w.attach("n2", v)
	p := writer.Progress()
	acknowledged := workload.Progress{Started: p.Started, Synced: p.Written}
	w.must(o.Verify(path, acknowledged))
	// One more may have been under way; it is on all replicas, or on none for good.
	arrived := o.Verify(path, workload.Progress{Started: p.Started, Synced: p.Started}) == nil
	// The new holder overwrites everything the old one wrote.
	pattern := workload.Pattern{Seed: 7, Bytes: 8 << 20}
	w.must(pattern.Write(w.ctx, path))

	thaw()
	<-writer.Done()
	after := writer.Stop()
	if after.Err == nil || after.Written > p.Written && !arrived || after.Written > p.Started {
		t.Errorf("the fenced holder acknowledged more: %+v after %+v, whose last write had arrived: %t", after, p, arrived)
	}
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, path))
	w.awaitInSync(v)
	w.must(w.Node("n2").Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, w.attach("n3", v))) // on another local replica
	w.must(w.Node("n3").Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, w.attach("n1", v)))
}

// A replica's node that answers nothing, without closing its connections.
func TestSilentReplicaIsGivenUp(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: replicas("3")})
	path := w.attach("n1", v)
	o := ring(filepath.Join(path, "log"))
	writer := w.write(o)
	thaw := w.freeze("n3")
	w.awaitReplica(v, "n3", volume.Outdated)
	w.awaitSynced(writer)
	thaw()
	w.awaitReplica(v, "n3", volume.InSync)
	w.awaitSynced(writer)
	p := writer.Stop()
	w.must(p.Err)
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.must(o.Verify(filepath.Join(w.attach("n3", v), "log"), p))
}

// One local replica is served by the kernel; the node's process may come and go.
func TestLocalReplicaNeedsNoProcess(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: usual, Params: map[string]string{"replicas": "1", "locality": "strict"}, On: "n2"})
	path := w.attach("n2", v)
	o := ring(filepath.Join(path, "log"))
	writer := w.write(o)
	w.do("kill", "n2")
	w.awaitSynced(writer)
	w.do("start", "n2")
	w.awaitSynced(writer)
	p := writer.Stop()
	w.must(p.Err)
	_, err := w.Controller().Expand(w.ctx, v, gib)
	w.must(err)
	_, err = w.Node("n2").Expand(w.ctx, v, gib)
	w.must(err)
	w.must(w.Node("n2").Detach(w.ctx, v))
	w.must(o.Verify(filepath.Join(w.attach("n2", v), "log"), p))
}

// A holder that was only frozen has a replica that the one that overtook it could
// not reach: what it reads there must not be what was there before.
func TestFrozenHolderReadsNothingOld(t *testing.T) {
	w := shared(t)
	v := w.create(kubelet.Spec{Block: true, SizeBytes: usual, Params: replicas("3")})
	path := w.attach("n1", v)
	part := func(seed uint64, i int) workload.Pattern {
		return workload.Pattern{Seed: seed, Off: int64(i) << 20, Bytes: 1 << 20}
	}
	const parts, before, now = 8, 8, 9
	for i := range parts {
		w.must(part(before, i).Write(w.ctx, path))
		w.must(part(before, i).Verify(w.ctx, path))
	}
	thaw := w.freeze("n1")
	there := w.attach("n2", v)
	for i := range parts {
		w.must(part(now, i).Write(w.ctx, there))
	}

	// These are the first that it sees when it wakes.
	old := make(chan error, parts)
	for i := range parts {
		go func() { old <- part(before, i).Verify(w.ctx, path) }()
	}
	w.must(kubelet.Await(w.ctx, "reads to wait", func(context.Context) error { return readsWait(path, parts) }))
	thaw()
	for range parts {
		if err := <-old; err == nil {
			t.Error("the holder that was overtaken read what was there before")
		}
	}
	w.must(w.Node("n1").Detach(w.ctx, v))
	for i := range parts {
		w.must(part(now, i).Verify(w.ctx, there))
	}
	w.awaitInSync(v)
}

// readsWait says whether at least n reads are under way on a block device.
func readsWait(path string, n int) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/inflight", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return err
	}
	var reads int
	if _, err := fmt.Sscan(string(b), &reads); err != nil || reads < n {
		return fmt.Errorf("%d reads are under way: %w", reads, errors.Join(err, errors.New("too few")))
	}
	return nil
}
