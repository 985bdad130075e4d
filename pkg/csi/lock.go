package csi

import (
	"fmt"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Locks lets one call at a time change a volume. The zero value is ready.
type Locks struct {
	mu   sync.Mutex
	held map[volume.ID]string // guarded by mu: what each holder does
}

// TryLock takes the lock of a volume for what the caller is about to do, or
// returns ErrPending with what is under way. The returned function releases it.
func (l *Locks) TryLock(id volume.ID, what string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, busy := l.held[id]; busy {
		return nil, fmt.Errorf("%s of volume %s: %s is under way: %w", what, id, other, volume.ErrPending)
	}
	if l.held == nil {
		l.held = map[volume.ID]string{}
	}
	l.held[id] = what
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, id)
	}, nil
}
