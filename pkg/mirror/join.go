package mirror

import "github.com/holdfast-csi/holdfast/pkg/block"

// Join implements block.Joiner: the answers of remote replicas are received on
// the loop's thread. A mirror without a local replica reads from remote ones,
// whose answers bring data and are better received by threads of their own.
func (m *Mirror) Join(l block.Loop) {
	if m.local < 0 {
		return
	}
	m.loop.Store(&l)
	for i := range m.legs {
		if leg := m.legs[i].Load(); leg != nil {
			leg.join(l)
		}
	}
}

var _ block.Joiner = (*Mirror)(nil)

// join has a leg receive on the loop, once: Join and the leg's opening may both
// find it.
func (l *openLeg) join(loop block.Loop) {
	if j, ok := l.dev.(block.Joiner); ok && !l.joined.Swap(true) {
		j.Join(loop)
	}
}
