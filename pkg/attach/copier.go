package attach

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// copier stores copies of the volumes' objects beside the local replicas. It has
// its own goroutine, for each takes a sync of the disk; of several changes of one
// volume only the last is stored.
type copier struct {
	store func(volume.Volume) error // nil: nothing is stored
	log   *slog.Logger
	more  chan struct{} // has room for one

	mu   sync.Mutex
	todo map[volume.ID]volume.Volume // Guarded by mu.
}

func newCopier(store func(volume.Volume) error, log *slog.Logger) *copier {
	return &copier{store: store, log: log, more: make(chan struct{}, 1), todo: map[volume.ID]volume.Volume{}}
}

// keep has a copy stored soon.
func (c *copier) keep(v volume.Volume) {
	if c.store == nil {
		return
	}
	c.mu.Lock()
	c.todo[v.ID] = v
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *copier) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.more:
		}
		c.mu.Lock()
		todo := c.todo
		c.todo = map[volume.ID]volume.Volume{}
		c.mu.Unlock()
		for id, v := range todo {
			// The replica may not be there yet, or be gone.
			if err := c.store(v); err != nil && !errors.Is(err, volume.ErrNotFound) {
				c.log.Warn("no copy of the volume's object was stored", "volume", id, "error", err)
			}
		}
	}
}
