package attach

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (c *cluster) attach(n volume.NodeID, id volume.ID) Attachment {
	c.t.Helper()
	a, err := c.nodes[n].manager.Attach(deadline(c.t), id)
	c.must(err)
	return a
}

func (c *cluster) detach(n volume.NodeID, id volume.ID) {
	c.t.Helper()
	c.must(c.nodes[n].manager.Detach(deadline(c.t), id))
}

// write writes a block through the device and syncs it.
func (c *cluster) write(device string, off int64, fill byte) {
	c.t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	c.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte{fill}, 8192), off)
	c.must(errors.Join(err, f.Sync(), f.Close()))
}

func (c *cluster) expect(device string, off int64, fill byte) {
	c.t.Helper()
	f, err := os.Open(device)
	c.must(err)
	buf := block.Alloc(8192)
	_, err = f.ReadAt(buf, off)
	c.must(errors.Join(err, f.Close()))
	if !bytes.Equal(buf, bytes.Repeat([]byte{fill}, 8192)) {
		c.t.Errorf("%s at %d reads %d..., want %d", device, off, buf[0], fill)
	}
}

// What was written on one node is read on another, wherever the replicas are.
func TestAttachMovesBetweenNodes(t *testing.T) {
	c := newCluster(t, "n1", "n2", "n3")
	for name, v := range map[string]volume.Volume{
		"replica on both": c.create(volume.LocalityPreferred, "n1", "n2"),
		"replica on none": c.create(volume.LocalityPreferred, "n3"),
	} {
		t.Run(name, func(t *testing.T) {
			a := c.attach("n1", v.ID)
			if again := c.attach("n1", v.ID); again != a || a.Kind != "fuse" || a.SizeBytes != volumeSize || !a.Alive {
				t.Errorf("attached %+v, again %+v", a, again)
			}
			c.write(a.Device, 1<<20, 7)
			c.detach("n1", v.ID)
			c.detach("n1", v.ID)
			if got := c.get(v.ID).Status; got.Holder != nil || !got.Clean {
				t.Errorf("after detaching: %+v", got)
			}
			b := c.attach("n2", v.ID)
			c.expect(b.Device, 1<<20, 7)
			c.detach("n2", v.ID)
		})
	}
}

// A live holder is waited for; the answer names it, and comes before the
// caller's deadline.
func TestHolderIsWaitedFor(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	a := c.attach("n1", v.ID)
	c.write(a.Device, 0, 9)

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := c.nodes["n2"].manager.Attach(ctx, v.ID)
	if !errors.Is(err, volume.ErrHeld) || !strings.Contains(err.Error(), "n1") {
		t.Fatalf("while n1 holds it: %v, want ErrHeld naming n1", err)
	}
	if ctx.Err() != nil {
		t.Error("the answer came after the caller's deadline")
	}
	if _, ok := c.nodes["n2"].manager.Get(v.ID); ok || c.get(v.ID).Status.Epoch != 1 {
		t.Error("something was left behind")
	}

	done := make(chan error, 1)
	go func() {
		_, err := c.nodes["n2"].manager.Attach(deadline(t), v.ID)
		done <- err
	}()
	c.detach("n1", v.ID)
	c.must(<-done)
	b, _ := c.nodes["n2"].manager.Get(v.ID)
	c.expect(b.Device, 0, 9)
	c.detach("n2", v.ID)
}

// The volume of a dead node is taken over; the old holder can't write any more.
func TestDeadHolderIsOvertaken(t *testing.T) {
	c := newCluster(t, "n1", "n2", "n3")
	v := c.create(volume.LocalityPreferred, "n1", "n2", "n3")
	a := c.attach("n1", v.ID)
	c.write(a.Device, 0, 3)
	c.kill("n1")
	b := c.attach("n2", v.ID)
	c.expect(b.Device, 0, 3)
	c.write(b.Device, 0, 4)

	f, err := os.OpenFile(a.Device, os.O_WRONLY, 0)
	c.must(err)
	_, werr := f.WriteAt(bytes.Repeat([]byte{5}, 8192), 0)
	if err := errors.Join(werr, f.Sync()); err == nil {
		t.Error("the old holder's write was acknowledged")
	}
	c.must(f.Close())
	c.expect(b.Device, 0, 4)
	if old, _ := c.nodes["n1"].manager.Get(v.ID); old.Alive {
		t.Error("the old holder calls its attachment alive")
	}
	c.detach("n1", v.ID) // harmless for the new one
	if h := c.get(v.ID).Status.Holder; h == nil || h.Node != "n2" {
		t.Errorf("the holder is %+v, want n2", h)
	}
	c.detach("n2", v.ID)
}

func TestLoopOnly(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	v := c.create(volume.LocalityStrict, "n1")
	if _, err := c.nodes["n2"].manager.Attach(deadline(t), v.ID); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("away from its replica: %v, want ErrPrecondition", err)
	}
	a := c.attach("n1", v.ID)
	if a.Kind != "loop" {
		t.Errorf("exported by %s, want the loop device alone", a.Kind)
	}
	c.write(a.Device, 4096, 6)

	// The node's process dies: the device stays, and the next process takes it
	// over with a new epoch.
	n := c.nodes["n1"]
	dead := n.manager
	dead.mu.Lock()
	dead.attached[v.ID].loop.release()
	delete(dead.attached, v.ID)
	dead.mu.Unlock()
	clients := agent.NewClients()
	t.Cleanup(func() { c.must(clients.Close()) })
	n.manager = c.manager(n, clients, t.TempDir())
	b := c.attach("n1", v.ID)
	if b.Device != a.Device {
		t.Errorf("taken over as %s, was %s", b.Device, a.Device)
	}
	c.expect(b.Device, 4096, 6)
	c.detach("n1", v.ID)
	if got := c.get(v.ID).Status; got.Holder != nil || !got.Clean || got.Epoch != 2 {
		t.Errorf("after detaching: %+v", got)
	}
}

func TestGrowOnline(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	for name, v := range map[string]volume.Volume{
		"mirrored":  c.create(volume.LocalityPreferred, "n1", "n2"),
		"loop only": c.create(volume.LocalityStrict, "n1"),
	} {
		t.Run(name, func(t *testing.T) {
			a := c.attach("n1", v.ID)
			c.write(a.Device, 0, 1)
			if _, err := c.nodes["n1"].manager.Grow(deadline(t), v.ID, 2*volumeSize); !errors.Is(err, volume.ErrOutOfRange) {
				t.Errorf("growing beyond what was expanded to: %v, want ErrOutOfRange", err)
			}
			want := c.get(v.ID)
			want.Spec.SizeBytes = 2 * volumeSize
			_, err := c.store.Volumes().Update(t.Context(), want)
			c.must(err)
			c.eventually("the holder has grown the volume by itself", func() bool { return c.get(v.ID).Status.SizeBytes == 2*volumeSize })
			size, err := c.nodes["n1"].manager.Grow(deadline(t), v.ID, 2*volumeSize)
			c.must(err)
			if size != 2*volumeSize {
				t.Errorf("serves %d bytes", size)
			}
			c.write(a.Device, 2*volumeSize-8192, 2)
			c.expect(a.Device, 2*volumeSize-8192, 2)
			c.expect(a.Device, 0, 1)
			c.detach("n1", v.ID)
		})
	}
}

// A volume that was expanded while nobody held it is grown when it is attached,
// its device too, with nobody asking.
func TestGrowWhenAttached(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	v.Spec.SizeBytes = 2 * volumeSize
	_, err := c.store.Volumes().Update(t.Context(), v)
	c.must(err)
	a := c.attach("n1", v.ID)
	c.eventually("the device has the size", func() bool { return c.deviceSize(a.Device) == 2*volumeSize })
	c.detach("n1", v.ID)
}

func (c *cluster) deviceSize(path string) int64 {
	f, err := os.Open(path)
	c.must(err)
	size, err := f.Seek(0, io.SeekEnd)
	c.must(errors.Join(err, f.Close()))
	return size
}

// expanding expands the volume between the opening and the export.
type expanding struct {
	Local
	expand func()
}

func (l expanding) ClaimLoop(ctx context.Context, o replica.OpenOptions) (string, func(), error) {
	l.expand()
	return l.Local.ClaimLoop(ctx, o)
}

// The watch tells of an expansion while the volume is being attached, and of nothing
// after that.
func TestGrowWhileAttaching(t *testing.T) {
	c := newCluster(t, "n1")
	v := c.create(volume.LocalityStrict, "n1")
	m := c.nodes["n1"].manager
	m.opt.Local = expanding{m.opt.Local, func() {
		now := c.get(v.ID)
		now.Spec.SizeBytes = 2 * volumeSize
		_, err := c.store.Volumes().Update(t.Context(), now)
		c.must(err)
		c.eventually("the watch has told of it", func() bool {
			seen, _ := m.lastSeen(v.ID)
			return seen.Spec.SizeBytes == 2*volumeSize
		})
	}}
	c.attach("n1", v.ID)
	c.eventually("the volume has grown", func() bool { return c.get(v.ID).Status.SizeBytes == 2*volumeSize })
	c.detach("n1", v.ID)
}

func TestSetFormatNeedsTheVolume(t *testing.T) {
	c := newCluster(t, "n1")
	v := c.create(volume.LocalityPreferred, "n1")
	m := c.nodes["n1"].manager
	done := volume.Format{State: volume.FormatDone, FSType: "xfs"}
	if err := m.SetFormat(deadline(t), v.ID, done); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("not attached: %v, want ErrPrecondition", err)
	}
	c.attach("n1", v.ID)
	c.must(m.SetFormat(deadline(t), v.ID, done))
	if got := c.get(v.ID).Status.Format; got != done {
		t.Errorf("recorded %+v", got)
	}
	c.detach("n1", v.ID)
}

// What was said about lost data stays through releases and openings, on any node,
// until it is taken back.
func TestSetCondition(t *testing.T) {
	for name, locality := range map[string]volume.Locality{"mirrored": volume.LocalityPreferred, "loop only": volume.LocalityStrict} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, "n1")
			v := c.create(locality, "n1")
			m := c.nodes["n1"].manager
			lost := volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: volume.ReasonDataLoss + "Blank", Message: "it reads blank"}
			if err := m.SetCondition(deadline(t), v.ID, lost); !errors.Is(err, volume.ErrPrecondition) {
				t.Errorf("not attached: %v, want ErrPrecondition", err)
			}
			c.attach("n1", v.ID)
			c.must(m.SetCondition(deadline(t), v.ID, lost))
			for range 2 {
				c.detach("n1", v.ID)
				c.attach("n1", v.ID)
			}
			v = c.get(v.ID)
			if got, holds := v.LostData(); !holds || got != lost {
				t.Errorf("opened again: %+v, %t", got, holds)
			}
			found := volume.Condition{Type: volume.ConditionFaulty, Reason: "Staged"}
			c.must(m.SetCondition(deadline(t), v.ID, found))
			v = c.get(v.ID)
			if got, holds := v.LostData(); holds {
				t.Errorf("taken back: %+v", got)
			}
			c.detach("n1", v.ID)
		})
	}
}

// A device that is in use can't be detached, and stays usable.
func TestDetachWhileInUse(t *testing.T) {
	c := newCluster(t, "n1")
	v := c.create(volume.LocalityPreferred, "n1")
	a := c.attach("n1", v.ID)
	f, err := os.Open(a.Device)
	c.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.nodes["n1"].manager.Detach(ctx, v.ID); err == nil {
		t.Error("detached while open")
	}
	c.must(f.Close())
	c.detach("n1", v.ID)
}

// A host that lacks what an export needs says so, in its readiness and when it
// is asked to attach; nothing is taken.
func TestHostWithoutFUSE(t *testing.T) {
	c := newCluster(t, "n1")
	v := c.create(volume.LocalityPreferred, "n1")
	m := c.nodes["n1"].manager
	m.opt.Choose = func(volume.Params) export.Choice { return export.Choice{Volumes: "all", Why: "there is no /dev/fuse"} }
	for what, err := range map[string]error{
		"ready":  m.Ready(deadline(t)),
		"attach": func() error { _, err := m.Attach(deadline(t), v.ID); return err }(),
	} {
		if !errors.Is(err, volume.ErrUnsupported) || !strings.Contains(err.Error(), "/dev/fuse") {
			t.Errorf("%s: %v, want ErrUnsupported with the reason", what, err)
		}
	}
	if got := c.get(v.ID).Status; got.Holder != nil || got.Epoch != 0 {
		t.Errorf("something was taken: %+v", got)
	}
}

// Two nodes stage one volume at the same moment: one gets it, the other is told
// who has it.
func TestAttachOnTwoNodesAtOnce(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	for round := range 5 {
		results := map[volume.NodeID]chan error{"n1": make(chan error, 1), "n2": make(chan error, 1)}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		for n, done := range results {
			go func() {
				_, err := c.nodes[n].manager.Attach(ctx, v.ID)
				done <- err
			}()
		}
		var winner volume.NodeID
		for n, done := range results {
			if err := <-done; err == nil && winner == "" {
				winner = n
			} else if !errors.Is(err, volume.ErrHeld) {
				t.Fatalf("round %d: %s got %v; %q holds the volume", round, n, err, winner)
			}
		}
		cancel()
		h := c.get(v.ID).Status.Holder
		if winner == "" || h == nil || h.Node != winner {
			t.Fatalf("round %d: %q attached, the store names %+v", round, winner, h)
		}
		c.detach(winner, v.ID)
	}
}
