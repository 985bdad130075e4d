package mirror

import (
	"context"
	"fmt"
	"maps"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// trackSim is a replica's maps. Guarded by the replica's mu.
type trackSim struct {
	current, previous map[int]bool
	missed            map[string]map[int]bool
	generation        uint64
}

// opened begins a session: what is set is old.
func (t *trackSim) opened() {
	if t.previous == nil {
		t.current, t.previous, t.missed = map[int]bool{}, map[int]bool{}, map[string]map[int]bool{}
	}
	maps.Copy(t.previous, t.current)
	clear(t.current)
	t.generation = 0
}

func (t *trackSim) intend(io *block.IO) {
	for i := io.Off / volume.RegionBytes; i*volume.RegionBytes < io.Off+io.Len; i++ {
		t.current[int(i)] = true
	}
}

// tracked runs f under the session.
func (l *legSim) tracked(f func(t *trackSim) error) (err error) {
	l.mu.Lock()
	err = l.ended
	l.mu.Unlock()
	if err == nil {
		l.r.set(func() { err = f(&l.r.track) })
	}
	return err
}

func (l *legSim) Regions(_ context.Context, kind volume.MapKind, about string) (*bitmap.Set, error) {
	set := bitmap.New(int((l.Size() + volume.RegionBytes - 1) / volume.RegionBytes))
	err := l.tracked(func(t *trackSim) error {
		of := []map[int]bool{t.current, t.previous, t.missed[about]}
		if kind == volume.MapIntent {
			of = of[:2]
		}
		for _, m := range of {
			for i := range m {
				set.Add(i)
			}
		}
		if kind == volume.MapAllocated {
			set.AddAll()
		}
		return nil
	})
	return set, err
}

func (l *legSim) Rotate(_ context.Context, generation uint64) error {
	return l.tracked(func(t *trackSim) error {
		if generation <= t.generation {
			return fmt.Errorf("generation %d after %d: %w", generation, t.generation, volume.ErrConflict)
		}
		maps.Copy(t.previous, t.current)
		clear(t.current)
		t.generation = generation
		return nil
	})
}

func (l *legSim) DropPrevious(_ context.Context, generation uint64, away []volume.Absent) error {
	return l.tracked(func(t *trackSim) error {
		if generation != t.generation {
			return fmt.Errorf("generation %d, not %d: %w", generation, t.generation, volume.ErrConflict)
		}
		missed := map[string]map[int]bool{}
		for _, a := range away {
			set := map[int]bool{}
			maps.Copy(set, t.missed[a.Name])
			maps.Copy(set, t.previous)
			l.note(set, a.Progress)
			missed[a.Name] = set
		}
		t.missed = missed
		clear(t.previous)
		return nil
	})
}

func (l *legSim) DropCopied(_ context.Context, generation uint64, p volume.Progress) error {
	return l.tracked(func(t *trackSim) error {
		if generation != t.generation {
			return fmt.Errorf("generation %d, not %d: %w", generation, t.generation, volume.ErrConflict)
		}
		l.note(t.previous, p)
		return nil
	})
}

// note writes a resync's progress down.
func (l *legSim) note(set map[int]bool, p volume.Progress) {
	for i := range int((l.Size() + volume.RegionBytes - 1) / volume.RegionBytes) {
		switch below := int64(i)*volume.RegionBytes < p.Below; {
		case below:
			delete(set, i)
		case p.Whole:
			set[i] = true
		}
	}
}

func (l *legSim) Hashes(_ context.Context, off, n int64) ([]byte, error) {
	buf := make([]byte, n)
	if err := block.ReadAt(l, buf, off); err != nil {
		return nil, err
	}
	return replica.Hash(buf), nil
}
