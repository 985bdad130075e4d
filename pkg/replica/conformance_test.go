package replica

import (
	"sync/atomic"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

func TestSessionConformance(t *testing.T) {
	s := newServer(t, Options{WritebackBytes: 1 * mib, MaxDirtyBytes: 4 * mib})
	var n atomic.Int64
	for name, direct := range map[string]bool{"page cache": false, "direct": true} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) block.Device {
				u := uid(int(n.Add(1)))
				create(t, s, u, 16*mib)
				t.Cleanup(func() {
					if err := s.Delete(deadline(t), vol, u); err != nil {
						t.Error(err)
					}
				})
				o := opening(u, 1, 1)
				o.Direct = direct
				return open(t, s, o)
			}, blocktest.Options{})
		})
		t.Run(name+", on a loop", func(t *testing.T) {
			blocktest.Run(t, func(t *testing.T) block.Device {
				u := uid(int(n.Add(1)))
				create(t, s, u, 16*mib)
				t.Cleanup(func() {
					if err := s.Delete(deadline(t), vol, u); err != nil {
						t.Error(err)
					}
				})
				o := opening(u, 1, 1)
				o.Direct = direct
				return blocktest.NewLoop(t).On(Async{open(t, s, o)})
			}, blocktest.Options{})
		})
	}
}
