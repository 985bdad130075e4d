package mirror

import "github.com/holdfast-csi/holdfast/pkg/volume"

// Serving tells how the replicas are, and how far resyncs have come. It costs the
// data path nothing: it is asked for, never pushed.
func (m *Mirror) Serving() volume.Serving {
	s := volume.Serving{Volume: m.opt.Volume, UID: m.claim.UID, Epoch: m.Epoch()}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Dirty = m.core.Dirty()
	for i, r := range m.reps {
		state, reason := m.core.LegState(i)
		done, total, running := m.core.Progress(i)
		if state == volume.InSync {
			running, reason = false, ""
		}
		if !running {
			done, total = 0, 0
		}
		s.Replicas = append(s.Replicas, volume.ServedReplica{
			Node: r.Node, State: state, Reason: reason, Resyncing: running, DoneBytes: min(done, total), TotalBytes: total,
		})
	}
	return s
}
