package pool

import (
	"fmt"
	"os"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Claim is what one replica takes, or may take, of a pool.
type Claim struct {
	Bytes int64 // the replica's size
	// Guaranteed: its writes can't be paused, so the pool keeps room for all of
	// Bytes.
	Guaranteed bool
	// Allocated tells how many of Bytes have blocks now. It is called with the
	// pool's lock held and must be as quick as stat(2). Nil means 0.
	Allocated func() int64
}

func (c Claim) unallocated() int64 {
	if !c.Guaranteed {
		return 0
	}
	if c.Allocated == nil {
		return c.Bytes
	}
	return max(0, c.Bytes-c.Allocated())
}

// Stats is a pool's accounting, in bytes.
type Stats struct {
	Capacity    int64 // of the file system
	Free        int64 // of the file system now
	Reserve     int64 // never given out
	Promised    int64 // sum of all claims
	Guaranteed  int64 // sum of the guaranteed claims
	Unallocated int64 // of the guaranteed claims, what has no blocks yet
}

// Usable is what the pool may hold at all.
func (s Stats) Usable() int64 { return max(0, s.Capacity-s.Reserve) }

// Headroom is what thin replicas may allocate now; negative when the pool is
// fuller than it should be.
func (s Stats) Headroom() int64 { return s.Free - s.Reserve - s.Unallocated }

// Stats reads the file system's numbers.
func (p *Pool) Stats() (Stats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statsLocked()
}

func (p *Pool) statsLocked() (Stats, error) {
	sp, err := p.statfs()
	if err != nil {
		return Stats{}, err
	}
	s := Stats{Capacity: sp.capacity, Free: sp.free, Reserve: p.opts.ReserveBytes}
	for _, c := range p.claims {
		s.Promised += c.Bytes
		s.Unallocated += c.unallocated()
		if c.Guaranteed {
			s.Guaranteed += c.Bytes
		}
	}
	return s, nil
}

// Claim books a new replica, or the growth of one that has a claim already.
// ErrNoSpace: more would be promised than over-provisioning allows, or a
// guarantee could not be kept; nothing is changed then.
func (p *Pool) Claim(uid volume.UID, c Claim) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.statsLocked()
	if err != nil {
		return err
	}
	old := p.claims[uid]
	more := c.Bytes - old.Bytes
	if limit := p.promiseLimit(s); more > limit-s.Promised {
		return fmt.Errorf("pool %s can't promise %d more bytes: %d of at most %d (%g times %d usable) are promised: %w",
			p.id.Name, more, s.Promised, limit, p.opts.OverProvision, s.Usable(), volume.ErrNoSpace)
	}
	if c.Guaranteed {
		// A replica that becomes guaranteed counts as a whole, one that grows
		// with what it grows by.
		extra := c.unallocated() - old.unallocated()
		if s.Guaranteed-guaranteedBytes(old)+c.Bytes > s.Usable() || extra > s.Headroom() {
			return fmt.Errorf("pool %s can't guarantee %d more bytes: %d are free, %d reserved, %d guaranteed to others and not yet used: %w",
				p.id.Name, extra, s.Free, s.Reserve, s.Unallocated, volume.ErrNoSpace)
		}
	}
	p.claims[uid] = c
	p.budget.Store(0) // the next write looks again
	return nil
}

func guaranteedBytes(c Claim) int64 {
	if c.Guaranteed {
		return c.Bytes
	}
	return 0
}

func (p *Pool) promiseLimit(s Stats) int64 { return int64(p.opts.OverProvision * float64(s.Usable())) }

// Adopt books a replica that is there already, whatever the limits say.
func (p *Pool) Adopt(uid volume.UID, c Claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims[uid] = c
	p.budget.Store(0)
}

// Release forgets a replica's claim.
func (p *Pool) Release(uid volume.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.claims, uid)
}

const (
	// below lowHeadroom bytes the budget is all there is; above it a part, so
	// that what others write to the same file system is noticed in time.
	lowHeadroom = 64 << 20
	maxBudget   = 1 << 30
)

// Admit asks whether a thin replica may write n bytes. ErrNoSpace: not without
// touching the reserve or what others were guaranteed; ask again later. Every
// byte counts as newly allocated until free space is looked at again, which
// happens once per budget, not once per write.
//
// Writes that were admitted and not yet done may be missing in a new look at
// the free space; the reserve is there to cover them.
func (p *Pool) Admit(n int64) error {
	if p.budget.Add(-n) >= 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.budget.Add(-n) >= 0 { // somebody else looked meanwhile
		return nil
	}
	p.budget.Store(0)
	s, err := p.statsLocked()
	if err != nil {
		return err
	}
	room := s.Headroom()
	if room < n {
		return fmt.Errorf("pool %s: %d bytes free, %d reserved, %d guaranteed to others: %w", p.id.Name, s.Free, s.Reserve, s.Unallocated, volume.ErrNoSpace)
	}
	if room > lowHeadroom {
		room = max(lowHeadroom, min(room/2, maxBudget))
	}
	p.budget.Store(max(0, room-n))
	return nil
}

// Report is the pool as the store's Node object tells of it.
func (p *Pool) Report() volume.Pool {
	r := volume.Pool{Name: p.id.Name, UID: p.UID(), Reserve: p.opts.ReserveBytes, OverProvision: p.opts.OverProvision}
	s, err := p.Stats()
	if err == nil {
		r.Capacity, r.Free = s.Capacity, s.Free
		err = p.Health()
	}
	if err != nil {
		r.Message = err.Error()
		return r
	}
	r.Healthy = true
	return r
}

// Health says why the pool must not get new replicas; nil when it may. A file
// system that shut itself down still answers statfs, but opens no file.
func (p *Pool) Health() error {
	id, ok, err := readIdentity(p.path(identityFile))
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("pool %s: %s vanished: %w", p.id.Name, identityFile, os.ErrNotExist)
	case id != p.id:
		return fmt.Errorf("pool %s: %s was replaced by that of %q (%s): %w", p.id.Name, identityFile, id.Name, id.UID, volume.ErrCorrupt)
	}
	return nil
}
