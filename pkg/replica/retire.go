package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// trashDir is the directory in a pool that keeps what was retired without leave
// to remove it. Nothing in it is ever removed by Holdfast: an administrator does,
// or moves a replica back while the node's process is away.
const trashDir = "trash"

// RetireOptions says which replica to retire.
type RetireOptions struct {
	Volume volume.ID
	UID    volume.UID
	// Epoch: the volume's when the replica was taken off it. One that has seen a
	// higher epoch was added again since, so an order that comes late is refused.
	Epoch volume.Epoch
	// Keep the files, in the pool's trash.
	Keep bool
}

// Retire removes a replica that its volume has no more, or moves it to the trash;
// nil when there is none. Errors are Delete's, and ErrFenced.
func (s *Server) Retire(ctx context.Context, o RetireOptions) error {
	return s.remove(ctx, removal{id: o.Volume, uid: o.UID, keep: o.Keep, refuse: func(r *replica) error {
		if seen := r.snapshot().Epoch; seen > o.Epoch {
			return fmt.Errorf("replica %s has seen epoch %d, and was to be retired at %d: %w", o.UID, seen, o.Epoch, volume.ErrFenced)
		}
		return nil
	}})
}

// trashPath makes the trash and finds a name in it that is free.
func (r *replica) trashPath() (string, error) {
	dir := filepath.Join(r.pool.Path(), trashDir)
	if err := r.pool.FS().Mkdir(dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if err := r.pool.FS().SyncDir(r.pool.Path()); err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s-%s", r.uid, time.Now().UTC().Format("20060102T150405.000000000"))
	return filepath.Join(dir, name), nil
}
