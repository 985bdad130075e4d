package attach

import (
	"cmp"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Serving tells of the volumes that this node holds, sorted by ID, and how far
// their resyncs are.
func (m *Manager) Serving() []volume.Serving {
	m.mu.Lock()
	var out []volume.Serving
	var mirrors []*attachment
	for _, a := range m.attached {
		mirrors = append(mirrors, a)
	}
	for _, r := range m.repairs {
		if mir := r.mirror.Load(); mir != nil {
			s := mir.Serving()
			s.Repair = true
			out = append(out, s)
		}
	}
	m.mu.Unlock()
	for _, a := range mirrors {
		out = append(out, a.serving())
	}
	slices.SortFunc(out, func(a, b volume.Serving) int { return cmp.Compare(a.Volume, b.Volume) })
	return out
}

func (a *attachment) serving() volume.Serving {
	if a.under != nil {
		mir, _ := a.under.mirror()
		return mir.Serving()
	}
	return volume.Serving{Volume: a.v.ID, UID: a.v.UID, Epoch: a.loop.claim.Epoch()}
}
