package sim

import (
	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// resumption is what the simulator remembers of a replica's resyncs since it was last
// in sync, to tell whether one really went on where another had stopped.
type resumption struct {
	copied map[int64]sessionKey // by region: the session that copied or compared it last
	noted  map[int64]bool       // regions of which the replica then wrote down that they are
}

type sessionKey struct {
	epoch   volume.Epoch
	session volume.Session
}

func (n *node) forgetResyncs() {
	n.resumption = resumption{copied: map[int64]sessionKey{}, noted: map[int64]bool{}}
}

// wasCopied notes a copy that ended well.
func (n *node) wasCopied(h *holder, a core.Action) {
	for r := a.Op.Off / grain.RegionBytes; r*grain.RegionBytes < a.Op.Off+a.Op.Len; r++ {
		n.resumption.copied[r] = sessionKey{h.epoch, a.Session}
	}
}

// wasNoted notes progress that the replica made durable.
func (n *node) wasNoted(p volume.Progress) {
	for r := range n.resumption.copied {
		if r*grain.RegionBytes < p.Below {
			n.resumption.noted[r] = true
		}
	}
}

// countResumed looks at a resync that has ended: what an earlier session copied and
// this one did not even compare is what it resumed after.
func (n *node) countResumed(h *holder) {
	s, _ := h.m.Session(n.id)
	skipped := 0
	for r := range n.resumption.noted {
		if n.resumption.copied[r] != (sessionKey{h.epoch, s}) {
			skipped++
		}
	}
	if skipped > 0 {
		n.c.counts.reach("resync resumed")
		n.c.logf("node %d: its resync did not look at %d regions again", n.id, skipped)
	}
	n.forgetResyncs()
}
