package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// KindVolumeCopy is the kind of volume.json.
const KindVolumeCopy pool.Kind = "holdfast-volume-copy"

// copyFile holds the volume's object as this node last saw it in the store.
// Nothing that serves data reads it: it is for the day on which the store is lost.
const copyFile = "volume.json"

// Record is what a replica knows of its volume.
type Record struct {
	Info
	// Object is a volume.Kept in JSON; nil when there is none that can be read.
	Object []byte
}

// kept is volume.json.
type kept struct{ volume.Kept }

// Check implements pool.Body.
func (k *kept) Check() error {
	if k.Volume.ID.Validate() != nil || k.Volume.UID.Validate() != nil || k.Version <= 0 {
		return fmt.Errorf("volume %q, uid %q, version %d can't be: %w", k.Volume.ID, k.Volume.UID, k.Version, volume.ErrCorrupt)
	}
	return nil
}

// Keep stores a copy of the volume's object beside its replica, durably.
// ErrNotFound when there is no replica of this volume here.
func (s *Server) Keep(v volume.Volume) error {
	r, err := s.lookup(v.UID)
	if err != nil {
		return err
	}
	// A replica that is deleted meanwhile takes its directory with it.
	path := filepath.Join(r.dir, copyFile)
	err = pool.WriteRecord(r.pool.FS(), path, KindVolumeCopy, &kept{volume.Kept{Version: v.Version, Volume: v}})
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replica %s: %w: %w", v.UID, volume.ErrNotFound, err)
	}
	return err
}

// Records tells what all replicas know of their volumes, damaged ones too.
func (s *Server) Records() []Record {
	var out []Record
	for _, r := range s.all() {
		rec := Record{Info: r.info()}
		var k kept
		if err := pool.ReadRecord(r.pool.FS(), filepath.Join(r.dir, copyFile), KindVolumeCopy, &k); err == nil {
			rec.Object, err = json.Marshal(k.Kept)
			if err != nil {
				r.log.Warn("the copy of the volume's object can't be told", "error", err)
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			r.log.Warn("the copy of the volume's object can't be read", "error", err)
		}
		out = append(out, rec)
	}
	return out
}
