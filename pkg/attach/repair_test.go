package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// soon is the delay of repairs in these tests.
const soon = 50 * time.Millisecond

// edit changes a volume in the store.
func (c *cluster) edit(id volume.ID, change func(*volume.Volume)) {
	c.t.Helper()
	for {
		v := c.get(id)
		change(&v)
		_, err := c.store.Volumes().Update(context.Background(), v)
		if !errors.Is(err, volume.ErrConflict) {
			c.must(err)
			return
		}
	}
}

func (c *cluster) settled(id volume.ID, replicas int) {
	c.t.Helper()
	c.eventually("the volume to be in sync and released", func() bool {
		v := c.get(id)
		return v.Settled() && v.Status.Holder == nil && v.Status.Clean && len(v.Status.Replicas) == replicas
	})
}

// want sets the volume's places, and makes the replicas that are missing.
func (c *cluster) want(id volume.ID, on ...volume.NodeID) {
	c.t.Helper()
	v := c.get(id)
	var places []volume.Place
	for _, n := range on {
		p := volume.Place{Node: n, Pool: "p", ID: uuid.NewString(), Made: true}
		if i := v.ReplicaOn(n); i >= 0 {
			p.ID = v.Status.Replicas[i].ID
		} else {
			c.must(c.nodes[n].replica.Create(context.Background(), replica.CreateOptions{Volume: v.ID, UID: v.UID, Pool: "p", SizeBytes: volumeSize}))
		}
		places = append(places, p)
	}
	c.edit(id, func(v *volume.Volume) { v.Spec.Places = places })
}

func (v *volumeUnderTest) on(node volume.NodeID) volume.ReplicaState {
	if i := v.ReplicaOn(node); i >= 0 {
		return v.Status.Replicas[i].State
	}
	return ""
}

type volumeUnderTest struct{ volume.Volume }

// A volume that nobody uses, left with a replica behind, or unclean, is repaired
// by the nodes alone.
func TestUnusedVolumesAreRepaired(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2", "n3")
	for name, change := range map[string]func(*volume.Volume){
		"a replica is behind": func(v *volume.Volume) { v.Status.Replicas[2].State = volume.Outdated },
		"two are behind": func(v *volume.Volume) {
			v.Status.Replicas[0].State, v.Status.Replicas[2].State = volume.Outdated, volume.Rebuilding
		},
		"it was not closed cleanly": func(v *volume.Volume) { v.Status.Clean = false },
		"its holder died": func(v *volume.Volume) {
			v.Status.Clean, v.Status.Holder = false, &volume.Holder{Node: "dead", Nonce: "n"}
		},
		"its holder's process began anew": func(v *volume.Volume) {
			v.Status.Clean, v.Status.Holder = false, &volume.Holder{Node: "n2", Nonce: "n"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.kill("dead")
			v := c.create(volume.LocalityPreferred, "n1", "n2", "n3")
			a := c.attach("n2", v.ID)
			c.write(a.Device, 3<<20, 5)
			c.detach("n2", v.ID)
			c.edit(v.ID, change)
			c.settled(v.ID, 3)
			for _, n := range []volume.NodeID{"n1", "n3"} {
				a := c.attach(n, v.ID)
				c.expect(a.Device, 3<<20, 5)
				c.detach(n, v.ID)
			}
		})
	}
}

// What needs no repair is left alone, and what can't be repaired is not opened
// again and again.
func TestWhatIsNotRepaired(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	m := c.nodes["n1"].manager
	for name, tt := range map[string]struct {
		change func(*volume.Volume)
		rank   int
	}{
		"all in sync":             {func(*volume.Volume) {}, -1},
		"a replica is behind":     {func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated }, 0},
		"this one is behind":      {func(v *volume.Volume) { v.Status.Replicas[0].State = volume.Outdated }, -1},
		"a replica failed":        {func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Failed }, -1},
		"its node is away":        {func(v *volume.Volume) { v.Status.Replicas[1] = volume.Replica{Node: "away", State: volume.Outdated} }, -1},
		"unclean":                 {func(v *volume.Volume) { v.Status.Clean = false }, 0},
		"held":                    {func(v *volume.Volume) { v.Status.Holder = &volume.Holder{Node: "n2"}; v.Status.Clean = false }, -1},
		"held by another repair":  {func(v *volume.Volume) { v.Status.Holder = &volume.Holder{Node: "n2", Repair: true} }, -1},
		"another is to do it":     {func(v *volume.Volume) { slices.Reverse(v.Status.Replicas); v.Status.Clean = false }, 1},
		"a place is empty":        {func(v *volume.Volume) { v.Spec.Places = append(v.Spec.Places, volume.Place{Node: "n3", Made: true}) }, 0},
		"a place is not made":     {func(v *volume.Volume) { v.Spec.Places = append(v.Spec.Places, volume.Place{Node: "n3"}) }, -1},
		"being deleted":           {func(v *volume.Volume) { v.Status.Phase, v.Status.Clean = volume.PhaseDeleting, false }, -1},
		"the store went backward": {func(v *volume.Volume) { v.Status.Clean = false; storeBehind(v) }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			c.kill("away")
			v := volume.Volume{Spec: volume.Spec{Params: volume.Params{Replicas: 2}}}
			v.Status = volume.Status{Phase: volume.PhaseReady, Clean: true, Replicas: []volume.Replica{{Node: "n1", State: volume.InSync}, {Node: "n2", State: volume.InSync}}}
			v.Spec.Places = []volume.Place{{Node: "n1", Made: true}, {Node: "n2", Made: true}}
			tt.change(&v)
			if name == "its node is away" {
				v.Spec.Places = nil
			}
			if got := m.repairRank(&v); got != tt.rank {
				t.Errorf("rank %d, want %d", got, tt.rank)
			}
		})
	}
}

func storeBehind(v *volume.Volume) {
	v.SetCondition(volume.Condition{Type: volume.ConditionFaulty, Status: true, Reason: volume.ReasonStoreBehind})
}

// Who wants to use a volume does not wait for its repair, on whatever node it
// runs, and nothing of the repair is an unclean end.
func TestRepairGivesWay(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2", "n3")
	for _, user := range []volume.NodeID{"n1", "n3"} {
		t.Run(fmt.Sprintf("used on %s", user), func(t *testing.T) {
			v := c.create(volume.LocalityPreferred, "n1", "n2")
			// A replica that is not there keeps the repair busy.
			c.must(c.nodes["n2"].replica.Delete(deadline(t), v.ID, v.UID))
			c.edit(v.ID, func(v *volume.Volume) { v.Status.Replicas[1].State = volume.Outdated })
			c.eventually("the repair to begin", func() bool {
				h := c.get(v.ID).Status.Holder
				return h != nil && h.Repair && h.Node == "n1" && len(c.nodes["n1"].manager.Serving()) == 1
			})
			if !c.get(v.ID).Status.Clean {
				t.Error("a repair makes the volume unclean")
			}
			a := c.attach(user, v.ID)
			c.write(a.Device, 0, 3)
			h := c.get(v.ID).Status.Holder
			if h == nil || h.Repair || h.Node != user {
				t.Errorf("the holder is %+v", h)
			}
			c.detach(user, v.ID)
		})
	}
}

// The replicas of a volume in use change under its export: nothing waits for
// long, nothing is lost.
func TestReplicasChangeWhileInUse(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2", "n3")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	a := c.attach("n1", v.ID)
	stop := c.keepWriting(a.Device)
	c.want(v.ID, "n1", "n3")
	c.eventually("n3 to replace n2", func() bool {
		v := volumeUnderTest{c.get(v.ID)}
		return v.on("n3") == volume.InSync && v.on("n2") == "" && len(v.Status.Retired) == 1
	})
	c.want(v.ID, "n3")
	c.eventually("n3 to be the only one", func() bool { return len(c.get(v.ID).Status.Replicas) == 1 })
	rounds := stop()
	if got, ok := c.nodes["n1"].manager.Get(v.ID); !ok || !got.Alive || got.Device != a.Device {
		t.Errorf("attached: %+v", got)
	}
	c.detach("n1", v.ID)
	b := c.attach("n3", v.ID)
	c.expect(b.Device, 0, byte(rounds))
	c.detach("n3", v.ID)
}

// keepWriting writes and syncs until stopped; the last byte written is the number
// of rounds.
func (c *cluster) keepWriting(device string) (stop func() int) {
	end, rounds := make(chan struct{}), 0
	var wg sync.WaitGroup
	wg.Go(func() {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			c.t.Error(err)
			return
		}
		buf := make([]byte, 8192)
		for {
			rounds++
			for i := range buf {
				buf[i] = byte(rounds)
			}
			if _, err := f.WriteAt(buf, 0); err != nil {
				c.t.Error(err)
				break
			}
			if err := f.Sync(); err != nil {
				c.t.Error(err)
				break
			}
			select {
			case <-end:
				c.t.Logf("%d rounds", rounds)
				if err := f.Close(); err != nil {
					c.t.Error(err)
				}
				return
			default:
			}
		}
	})
	return func() int {
		close(end)
		wg.Wait()
		return rounds
	}
}

// The replicas of a volume that nobody uses change too.
func TestReplicasChangeWhileUnused(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2", "n3")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	a := c.attach("n1", v.ID)
	c.write(a.Device, 1<<20, 9)
	c.detach("n1", v.ID)
	c.want(v.ID, "n3", "n2")
	c.settled(v.ID, 2)
	b := c.attach("n3", v.ID)
	if v := (volumeUnderTest{c.get(v.ID)}); v.on("n1") != "" || v.on("n3") != volume.InSync {
		t.Errorf("replicas %+v", v.Status.Replicas)
	}
	c.expect(b.Device, 1<<20, 9)
	c.detach("n3", v.ID)
}

// A store that went back in time is noticed by the first replica that has seen
// more, and no repetition gets past it.
func TestStoreBehindStopsTheVolume(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	for range 4 {
		c.attach("n1", v.ID)
		c.detach("n1", v.ID)
	}
	c.edit(v.ID, func(v *volume.Volume) { v.Status.Epoch = 1 })
	if _, err := c.nodes["n1"].manager.Attach(deadline(t), v.ID); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("the first attempt: %v", err)
	}
	for range 6 {
		if _, err := c.nodes["n2"].manager.Attach(deadline(t), v.ID); !errors.Is(err, volume.ErrPrecondition) {
			t.Fatalf("another attempt: %v", err)
		}
	}
	got := c.get(v.ID)
	if cond, _ := got.Condition(volume.ConditionFaulty); got.Status.Epoch > 2 || cond.Reason != volume.ReasonStoreBehind {
		t.Errorf("epoch %d, %+v", got.Status.Epoch, cond)
	}
}

// A store that was set back by one epoch gives the epoch again, even to the node
// that had it. The replicas tell by the claim's nonce.
func TestStoreBehindByOneEpoch(t *testing.T) {
	c := newRepairing(t, soon, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	c.attach("n1", v.ID)
	c.detach("n1", v.ID)
	epoch := c.get(v.ID).Status.Epoch
	c.edit(v.ID, func(v *volume.Volume) { v.Status.Epoch = epoch - 1 })
	if _, err := c.nodes["n1"].manager.Attach(deadline(t), v.ID); !errors.Is(err, volume.ErrFenced) {
		t.Fatalf("the first attempt: %v", err)
	}
	got := c.get(v.ID)
	if cond, _ := got.Condition(volume.ConditionFaulty); cond.Reason != volume.ReasonStoreBehind {
		t.Errorf("%+v", cond)
	}
}

// A node keeps what the store says of its volumes beside their replicas.
func TestObjectsAreKept(t *testing.T) {
	c := newCluster(t, "n1", "n2")
	v := c.create(volume.LocalityPreferred, "n1", "n2")
	c.attach("n1", v.ID)
	c.detach("n1", v.ID)
	for _, n := range []volume.NodeID{"n1", "n2"} {
		c.eventually("the object to be kept on "+string(n), func() bool {
			r := c.nodes[n].replica.Records()
			return len(r) == 1 && len(r[0].Object) > 0
		})
	}
}
