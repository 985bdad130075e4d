package attach

import (
	"context"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// takeAway makes the node's replica of the volume unreachable; the result brings
// back one of the old size, with nothing in it.
func (c *cluster) takeAway(n volume.NodeID, v volume.Volume) (back func()) {
	c.t.Helper()
	c.must(c.nodes[n].replica.Delete(deadline(c.t), v.ID, v.UID))
	return func() {
		c.t.Helper()
		c.must(c.nodes[n].replica.Create(context.Background(), replica.CreateOptions{Volume: v.ID, UID: v.UID, Pool: "p", SizeBytes: volumeSize}))
	}
}

// A volume grows while a replica is away. When that returns it is grown before it
// is resynced.
func TestGrowWithAReplicaAway(t *testing.T) {
	for name, inUse := range map[string]bool{"in use": true, "before it is used": false} {
		t.Run(name, func(t *testing.T) {
			c := newRepairing(t, soon, "n1", "n2", "n3")
			v := c.create(volume.LocalityPreferred, "n1", "n2", "n3")
			var back func()
			wish := func(v *volume.Volume) { v.Spec.SizeBytes = 2 * volumeSize }
			if inUse {
				a := c.attach("n1", v.ID)
				c.write(a.Device, volumeSize-8192, 4)
				back = c.takeAway("n3", v)
				c.write(a.Device, 0, 1) // so that it is missed
				c.eventually("n3 to be given up", func() bool { return c.inSync(v.ID) == 2 })
				c.edit(v.ID, wish)
			} else {
				back = c.takeAway("n3", v)
				c.edit(v.ID, func(v *volume.Volume) { wish(v); v.Status.Replicas[2].State = volume.Outdated })
			}
			a := c.attach("n1", v.ID)
			if !inUse {
				if a.SizeBytes != 2*volumeSize {
					t.Errorf("it began with %d bytes", a.SizeBytes)
				}
				c.write(a.Device, volumeSize-8192, 4)
			}
			c.eventually("the device to grow", func() bool {
				return c.deviceSize(a.Device) == 2*volumeSize && c.get(v.ID).Status.SizeBytes == 2*volumeSize
			})
			c.write(a.Device, 2*volumeSize-8192, 6)
			back()
			c.eventually("n3 to be in sync", func() bool { return c.inSync(v.ID) == 3 })
			if info, err := c.nodes["n3"].replica.Get(v.UID); err != nil || info.SizeBytes != 2*volumeSize {
				t.Errorf("the replica on n3 is %+v (%v)", info, err)
			}
			c.detach("n1", v.ID)
			b := c.attach("n3", v.ID)
			c.expect(b.Device, volumeSize-8192, 4)
			c.expect(b.Device, 2*volumeSize-8192, 6)
			c.detach("n3", v.ID)
		})
	}
}

func (c *cluster) inSync(id volume.ID) int {
	v := c.get(id)
	return v.CountState(volume.InSync)
}
