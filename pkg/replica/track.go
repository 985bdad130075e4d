package replica

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// What a mirror asks of a session besides I/O. All of it is refused once the
// session is over, so that a mirror that was overtaken clears nothing.

func (s *Server) openRegions(r *replica, size int64) (*regions, error) {
	f, err := s.files.OpenMap(r.regionsPath())
	if err != nil {
		return nil, err
	}
	g, err := openRegions(&regionFile{f: f, uid: r.uid}, size, s.opts.Grain)
	if err != nil {
		_ = f.Close() // nothing was promised
		return nil, err
	}
	return g, nil
}

// intend returns when the intent bits for a change there are durable.
func (s *Session) intend(off, n int64) error {
	if !intentBits {
		return nil
	}
	if err := s.regions.begin(off, n); err != nil {
		return s.fail("write the intent bitmap", err)
	}
	return nil
}

// Warm says whether a change there needs not wait for intent bits.
func (s *Session) Warm(off, n int64) bool { return !intentBits || s.regions.warm(off, n) }

// sweep gives up intent bits that are not needed; it does nothing once the session
// is over.
func (s *Session) sweep() { _ = s.entered(s.regions.sweep) } // an error has failed the replica

// markAhead sets intent bits before they are needed; it does nothing once the session is
// over.
func (s *Session) markAhead() { _ = s.entered(s.regions.commitAhead) } // an error has failed the replica

func (s *Session) growRegions(size int64) error {
	return s.entered(func() error { return s.regions.grow(size) })
}

// entered runs f as an I/O that is under way.
func (s *Session) entered(f func() error) error {
	if !s.gate.enter() {
		return s.why()
	}
	defer s.gate.leave()
	if err := f(); err != nil {
		if s.regions.failed() != nil {
			return s.fail("write the intent bitmap", err)
		}
		return fmt.Errorf("replica %s: %w", s.r.uid, diskError(err))
	}
	return nil
}

// Session is the open session; ErrFenced when it is not that one.
func (s *Server) Session(uid volume.UID, epoch volume.Epoch, session volume.Session) (*Session, error) {
	r, err := s.lookup(uid)
	if err != nil {
		return nil, err
	}
	live, err := r.holding(epoch, session)
	if err == nil && live == nil {
		err = fmt.Errorf("replica %s is exported by a loop device: %w", uid, volume.ErrFenced)
	}
	return live, err
}

// Regions reads one of the replica's maps, in regions of Grain.RegionBytes:
// volume.MapIntent those whose intent bit is set; MapMissed those, and what the
// replica called about missed, or perhaps did; MapAllocated those that are not
// holes.
func (s *Session) Regions(_ context.Context, kind volume.MapKind, about string) (*bitmap.Set, error) {
	var set *bitmap.Set
	err := s.entered(func() (err error) {
		switch kind {
		case volume.MapIntent:
			set = s.regions.intent()
		case volume.MapMissed:
			set = s.regions.missedBy(about)
		case volume.MapAllocated:
			set, err = s.allocatedRegions()
		default:
			err = fmt.Errorf("map %q: %w", kind, volume.ErrInvalid)
		}
		return err
	})
	return set, err
}

func (s *Session) allocatedRegions() (*bitmap.Set, error) {
	size := s.Size()
	set := bitmap.New(s.regions.count(size))
	for off := int64(0); off < size; {
		extents, err := s.img.Extents(off, size-off)
		if err != nil {
			return nil, err
		}
		if len(extents) == 0 {
			return nil, fmt.Errorf("no extents at %d: %w", off, volume.ErrCorrupt)
		}
		for _, e := range extents {
			if !e.Hole {
				set.AddRange(int(off/s.regions.grain.RegionBytes), s.regions.count(off+e.Len))
			}
			off += e.Len
		}
	}
	return set, nil
}

// Rotate begins generation seq of the intent bits: those of all changes that
// begin later. ErrConflict if it is not higher than the present one's.
func (s *Session) Rotate(_ context.Context, seq uint64) error {
	return s.entered(func() error { return s.regions.rotate(seq) })
}

// DropPrevious clears the intent bits of the generations before seq, which must
// be the present one, else ErrConflict; before that it adds them, durably, to
// what the replicas of away missed, without what their resyncs have copied. What
// others missed is forgotten.
func (s *Session) DropPrevious(_ context.Context, seq uint64, away []volume.Absent) error {
	return s.entered(func() error {
		var allocated *bitmap.Set
		if slices.ContainsFunc(away, func(a volume.Absent) bool { return a.Whole }) {
			var err error
			if allocated, err = s.allocatedRegions(); err != nil {
				return err
			}
		}
		return s.regions.drop(seq, away, allocated)
	})
}

// DropCopied clears, at a replica that is being resynced, the intent bits of the
// generations before seq, which must be the present one, else ErrConflict, as far as
// the resync has come; if nobody knows what the replica missed, it has a bit from then
// on, durably, wherever it has something beyond that.
func (s *Session) DropCopied(_ context.Context, seq uint64, p volume.Progress) error {
	return s.entered(func() error {
		var allocated *bitmap.Set // whatever is allocated after this has an intent bit of its own
		if p.Whole {
			var err error
			if allocated, err = s.allocatedRegions(); err != nil {
				return err
			}
		}
		return s.regions.dropCopied(seq, p, allocated)
	})
}

// Hashes returns the first volume.HashBytes of the SHA-256 of each volume.HashUnit bytes from
// off on; the last may be shorter. n is at most block.MaxIOBytes.
func (s *Session) Hashes(_ context.Context, off, n int64) ([]byte, error) {
	var out []byte
	err := s.entered(func() error {
		if off < 0 || n <= 0 || n > block.MaxIOBytes || off > s.Size()-n {
			return fmt.Errorf("hashes at %d+%d: %w", off, n, volume.ErrOutOfRange)
		}
		buf := bounce.Get().(*[]byte)
		defer bounce.Put(buf)
		p := (*buf)[:n]
		if err := s.img.ReadAt(p, off); err != nil {
			return err
		}
		out = Hash(p)
		return nil
	})
	return out, err
}

// Hash is what Hashes answers for these bytes.
func Hash(p []byte) []byte {
	out := make([]byte, 0, (len(p)+volume.HashUnit-1)/volume.HashUnit*volume.HashBytes)
	for len(p) > 0 {
		unit := p[:min(len(p), volume.HashUnit)]
		sum := sha256.Sum256(unit)
		out, p = append(out, sum[:volume.HashBytes]...), p[len(unit):]
	}
	return out
}
