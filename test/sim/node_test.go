package sim

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	volumeID  = volume.ID("hv-0123456789abcdef0123456789abcdef")
	volumeUID = volume.UID("00000000-0000-4000-8000-000000000001")
)

// grain: regions of two blocks, areas of eight.
var grain = replica.Grain{RegionBytes: 2 * blockBytes, AreaRegions: 4}

// hurry is how much sooner sweeps come than in production, where histories last
// longer.
const hurry = 20

// node is a machine with a replica on it, which the production code keeps.
type node struct {
	c       *cluster
	id      int
	up      bool
	process int // which one this is
	disk    *disk
	server  *replica.Server
	missing bool  // there is no replica: it is being replaced
	failed  bool  // the replica, durably
	slow    int64 // added to each request, in ms
	live    *conn // the open session's

	resumption resumption
}

func newNode(c *cluster, id int) *node {
	n := &node{c: c, id: id}
	n.disk = newDisk(c.rng, func(what string) {
		c.counts.fault("disk error")
		c.logf("node %d: the disk fails a %s", id, what)
	}, func() bool { return c.mayFail(id) })
	n.missing = true
	n.forgetResyncs()
	n.start()
	n.make(c.store.size)
	return n
}

// start starts the node's process. What it finds on its disk must be sound, unless
// the disk once failed.
func (n *node) start() {
	if n.up {
		return
	}
	n.disk.restart()
	server, err := replica.NewServer(replica.Options{
		Pools: []replica.Pool{n.disk}, Files: n.disk, Background: n, Grain: grain,
		WritebackBytes: 8 * blockBytes, MaxDirtyBytes: 1 << 40, // nobody can wait here
	})
	if err != nil { // the disk failed: whoever watches the process starts it again
		n.c.logf("node %d does not start: %v", n.id, err)
		n.disk.dead = true
		n.c.after(100, n.start)
		return
	}
	n.up, n.server = true, server
	n.c.logf("node %d starts", n.id)
	n.look()
}

// look learns whether the replica has failed, and whether the process is gone: it
// may die in the middle of what it does.
func (n *node) look() {
	if !n.up {
		return
	}
	if n.disk.dead {
		n.stop(n.c.rng.IntN(2) == 0 && n.c.rough.power)
		n.c.after(n.c.pause(3000), n.start)
		return
	}
	list := n.server.List()
	if len(list) == 0 && !n.missing {
		n.c.fail("lost", "node %d: the replica is gone", n.id)
	}
	for _, i := range list {
		n.failed = i.Failure != ""
		if n.failed && !n.disk.failed {
			n.c.fail("lost", "node %d: the replica is damaged, though its disk is sound: %s", n.id, i.Failure)
		}
	}
}

// Go implements replica.Background.
func (n *node) Go(do func()) { n.later(n.c.delay(), do) }

// After implements replica.Background.
func (n *node) After(d time.Duration, do func()) { n.later(d.Milliseconds()/hurry, do) }

// Now implements replica.Background.
func (n *node) Now() time.Time { return time.UnixMilli(n.c.now) }

func (n *node) later(delay int64, do func()) {
	process := n.process
	n.c.after(delay, func() {
		if n.up && n.process == process {
			do()
			n.look()
		}
	})
}

// stop ends the node's process; without power what was not synced may be lost, by
// chance.
func (n *node) stop(power bool) {
	n.c.logf("node %d stops, power loss %v", n.id, power)
	n.up, n.disk.dead = false, true
	n.process++
	if power {
		n.c.history.rebooted[n.id] = true
	}
	if power && n.disk.powerLoss() {
		n.c.counts.reach("unflushed blocks lost")
		n.c.history.forgot(n.c, n.id)
	}
	if n.live != nil {
		n.live.lose("the replica's process ended")
		n.live = nil
	}
}

// open is the replica's part of an opening.
func (n *node) open(h *holder, leg int, s volume.Session, size int64) (cn *conn, err error) {
	if !n.up {
		return nil, errUnreachable
	}
	defer n.look()
	cn = &conn{h: h, leg: leg, session: s, process: n.process}
	ctx := context.Background()
	cn.replica, err = n.server.Open(ctx, replica.OpenOptions{
		Volume: volumeID, UID: volumeUID, Epoch: h.epoch, Session: s, Holder: h.name(), Nonce: strconv.Itoa(h.id),
		OnEnd: func(err error) { cn.hear(err.Error()) },
	})
	if err == nil && cn.replica.Size() < size {
		n.c.counts.reach("replica grown at its opening")
		err = cn.replica.Grow(ctx, size)
	}
	if core.Fenced == openResult(err) {
		n.c.counts.reach("fence refused")
	}
	if n.disk.dead {
		return nil, errUnreachable
	}
	if err != nil {
		n.c.logf("node %d: not opened: %v", n.id, err)
		return nil, err
	}
	n.live = cn
	return cn, nil
}

// cells is what is in the blocks.
func (n *node) cells() []cell {
	i := n.disk.names["/"+replicasDir+"/"+string(volumeUID)+"/data.img"]
	if i == nil {
		return nil
	}
	return i.img.now
}

// block is what is in one of the used blocks.
func (n *node) block(b int) content {
	if cells := n.cells(); used[b] < int64(len(cells)) {
		return cells[used[b]].content
	}
	return content{}
}

// mayFail says whether a disk may fail for good: another replica is InSync, and
// every other one sound.
func (c *cluster) mayFail(id int) bool {
	for i, n := range c.nodes {
		if i != id && (n.failed || n.disk.failed || c.store.states[i] != volume.InSync) {
			return false
		}
	}
	return !c.healed
}

// replace removes a replica that is not InSync and makes a new one, as the
// controller does between two openings.
func (n *node) replace() {
	n.c.logf("node %d: the replica is replaced", n.id)
	n.c.counts.reach("replica replaced")
	defer n.look()
	if err := n.server.Delete(context.Background(), volumeID, volumeUID); err != nil {
		n.missing = true // perhaps: the disk failed, or the process died
		return
	}
	n.live, n.missing = nil, true
	n.forgetResyncs()
	n.make(n.c.store.size)
}

// make makes an empty replica, durably; the controller repeats it until it is
// there.
func (n *node) make(size int64) {
	defer n.look()
	err := n.server.Create(context.Background(), replica.CreateOptions{
		Volume: volumeID, UID: volumeUID, Pool: n.disk.Name(), SizeBytes: size,
		Epoch: n.c.store.epoch,
	})
	if errors.Is(err, volume.ErrExists) { // it was not removed after all
		n.missing = false
	}
	if err != nil {
		return
	}
	n.missing, n.failed, n.disk.failed = false, false, false
}
