package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// lacking is what a replica lacks in these tests. At --resync-limit it takes a
// minute, in which the mirror notes some four times how far it is.
const lacking = int64(256) << 20

// resuming is a standalone that copies slowly, with a volume of which n1 has a replica.
func resuming(t *testing.T, count string) (*world, kubelet.Volume) {
	w := own(t, kubelet.Options{Nodes: 3, PoolSize: "1Gi", Flags: []string{"--resync-limit", "4Mi", "--rejoin-timeout", "60s"}})
	return w, w.create(kubelet.Spec{Block: true, SizeBytes: lacking, Params: replicas(count), On: "n1"})
}

// A resync whose target, whose source, and whose mirror are killed, one after the
// other, goes on each time about where it was.
func TestResyncGoesOnAfterKills(t *testing.T) {
	w, v := resuming(t, "2")
	has, not := w.others(v)
	target, holder := has[1], not[0]
	pattern := workload.Pattern{Seed: 1, Bytes: lacking}
	path := w.attach(holder, v)
	w.must(pattern.Write(w.ctx, path))
	w.do("kill", target)
	w.awaitReplica(v, target, volume.Outdated)
	pattern.Seed = 2
	w.must(pattern.Write(w.ctx, path))
	w.do("start", target)

	c := copying{w: w, v: v, target: target}
	for i, victim := range []string{target, "n1", holder} {
		c.awaitNoted("n1", int64(25+20*i))
		w.do("kill", victim)
		w.do("start", victim)
	}
	w.attach(holder, v) // its device was gone
	c.end()
	w.must(w.Node(holder).Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, w.attach(target, v)))
	w.must(w.Node(target).Detach(w.ctx, v))
}

// So does a rebuild, whose mirror is on a source's node.
func TestRebuildGoesOnAfterKills(t *testing.T) {
	w, v := resuming(t, "2")
	_, not := w.others(v)
	target := not[0]
	pattern := workload.Pattern{Seed: 3, Bytes: lacking}
	w.must(pattern.Write(w.ctx, w.attach("n1", v)))
	w.mustCtl("replicas", v.ID, "3")

	c := copying{w: w, v: v, target: target}
	for i, victim := range []string{target, "n1"} {
		c.awaitNoted("n1", int64(30+30*i))
		w.do("kill", victim)
		w.do("start", victim)
	}
	w.attach("n1", v)
	c.end()
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, w.attach(target, v)))
	w.must(w.Node(target).Detach(w.ctx, v))
}

// copying counts what is compared or copied to a replica until it is in sync.
type copying struct {
	w      *world
	v      kubelet.Volume
	target string

	done, total int64 // of the present resync
	before      int64 // of those before
}

// look asks how far it is, and says whether that is known.
func (c *copying) look() bool {
	for _, r := range c.w.report(c.v).Replicas {
		if string(r.Node) != c.target || r.Resync == nil || r.Resync.TotalBytes == 0 {
			continue
		}
		if r.Resync.DoneBytes < c.done { // it was begun anew
			c.before += c.done
			c.w.t.Logf("%d MiB were done, %d MiB are left", c.done>>20, r.Resync.TotalBytes>>20)
		}
		c.done, c.total = r.Resync.DoneBytes, r.Resync.TotalBytes
		return true
	}
	return false
}

// awaitNoted waits until percent of what the replica lacked at first was copied, and
// then until the source's node has noted so.
func (c *copying) awaitNoted(source string, percent int64) {
	c.w.t.Helper()
	c.w.must(kubelet.Await(c.w.ctx, fmt.Sprintf("%d%% to be copied", percent), func(context.Context) error {
		if !c.look() || lacking-c.total+c.done < lacking*percent/100 {
			return fmt.Errorf("%d of %d bytes are", c.done, c.total)
		}
		return nil
	}))
	was := c.written(source)
	c.w.must(kubelet.Await(c.w.ctx, "the progress to be noted", func(context.Context) error {
		if c.look(); !c.written(source).After(was) {
			return errors.New("the map is as it was")
		}
		return nil
	}))
}

// written is when a node's map of the volume was last written.
func (c *copying) written(node string) time.Time {
	c.w.t.Helper()
	image := c.w.Image(c.w.object(c.v), volume.NodeID(node))
	st, err := os.Stat(filepath.Join(filepath.Dir(image), "regions.map"))
	c.w.must(err)
	return st.ModTime()
}

// end waits until the replica is in sync. What was compared or copied then is not much
// more than what it lacked; if each kill had it begin anew it would be nearly twice that.
func (c *copying) end() {
	c.w.t.Helper()
	c.w.must(kubelet.Await(c.w.ctx, "the replica to be in sync", func(context.Context) error {
		c.look()
		o := c.w.object(c.v)
		if r := o.Status.Replicas[o.ReplicaOn(volume.NodeID(c.target))]; r.State != volume.InSync {
			return fmt.Errorf("it is %s, %d of %d bytes", r.State, c.done, c.total)
		}
		return nil
	}))
	all := c.before + c.total
	c.w.t.Logf("%d MiB were compared or copied for %d MiB", all>>20, lacking>>20)
	if c.before == 0 {
		c.w.t.Error("no kill interrupted it")
	}
	if all > lacking*3/2 {
		c.w.t.Errorf("%d bytes were compared or copied for %d", all, lacking)
	}
}
