package mirror

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/mirror/core"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// openReplica opens one leg and reports it. The session before has answered
// everything by then: a request that it had may be sent to the new one.
func (m *Mirror) openReplica(leg int, s volume.Session, size int64) {
	ctx, cancel := context.WithTimeout(m.ctx, m.openTimeout(leg))
	defer cancel()
	dev, err := m.dial(ctx, leg, s, size)
	o := core.Opening{Result: OpenResult(err)}
	if err != nil {
		o.Reason = err.Error()
		m.log.Debug("replica not opened", "replica", m.reps[leg].Node, "epoch", m.Epoch(), "error", err)
	} else {
		o.Incarnation = dev.Incarnation()
		l := &openLeg{dev: dev, session: s, closed: make(chan struct{})}
		if old := m.legs[leg].Swap(l); old != nil {
			m.spawn(old.close) // given up, but not dropped yet: nothing is expected of it
		}
		if loop := m.loop.Load(); loop != nil {
			l.join(*loop)
		}
	}
	m.step(func(c *core.Machine) { c.Opened(leg, s, o) })
}

// openTimeout bounds one attempt; of those to bring a lost replica back in time
// there must be several.
func (m *Mirror) openTimeout(leg int) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, waited := m.core.Rejoining(leg); waited {
		return min(m.opt.OpenTimeout, max(m.opt.Rejoin/3, m.opt.Tick))
	}
	return m.opt.OpenTimeout
}

func (m *Mirror) dial(ctx context.Context, leg int, s volume.Session, size int64) (Leg, error) {
	if old := m.ending[leg].Load(); old != nil {
		select {
		case <-old.closed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the session before has not ended: %w", ctx.Err())
		}
	}
	return m.opt.Replicas.Open(ctx, OpenRequest{
		Volume: m.opt.Volume, UID: m.claim.UID, Replica: m.reps[leg], Epoch: m.Epoch(), Session: s, Holder: m.opt.Node, Nonce: m.claim.Nonce(),
		Size: size, Direct: m.direct,
		OnFail: func(err error) {
			m.spawn(func() { m.step(func(c *core.Machine) { c.LegLost(leg, s, err.Error()) }) })
		},
	})
}

// drop closes a leg's session; what is under way on it is answered with an
// error first.
func (m *Mirror) drop(leg int, s volume.Session) {
	m.resyncs.take(leg, s).over(0)
	l := m.legs[leg].Load()
	if l == nil || l.session != s || !m.legs[leg].CompareAndSwap(l, nil) {
		return
	}
	m.ending[leg].Store(l)
	m.spawn(l.close)
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// pause keeps a failing step from being repeated without end.
func (m *Mirror) pause() {
	select {
	case <-m.ctx.Done():
	case <-m.stopped:
	case <-time.After(200 * time.Millisecond):
	}
}

func (m *Mirror) growReplica(a core.Action) {
	ctx, cancel := context.WithTimeout(m.ctx, m.opt.OpenTimeout)
	defer cancel()
	err := fmt.Errorf("replica on %s is not open: %w", m.reps[a.Leg].Node, volume.ErrUnavailable)
	if l := m.legs[a.Leg].Load(); l != nil && l.session == a.Session {
		err = l.dev.Grow(ctx, a.Size)
	}
	reason := ""
	if err != nil {
		reason = fmt.Sprintf("replica on %s: %v", m.reps[a.Leg].Node, err)
	}
	m.step(func(c *core.Machine) { c.Grown(a, LegResult(err), reason) })
}
