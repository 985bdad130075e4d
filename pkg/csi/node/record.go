package node

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// kindStaged is the kind of the file below, a record as package pool writes them:
// JSON with kind, format version, checksum and this body:
//
//	<state>/staged/<volume id>.json
//	volume      the volume's identifier, as in the file's name
//	path        staging path, with the links of its parents followed
//	device      "/dev/loop3"; "" before the volume was attached
//	kind        how it is exported
//	block, fsType, mode, mountFlags: the capability that it was staged with
//	targets     target path -> how it is published there
const kindStaged pool.Kind = "holdfast-staged"

// record is what was asked for when a volume was staged, and where it went.
type record struct {
	Volume     volume.ID         `json:"volume"`
	Path       string            `json:"path"`
	Device     string            `json:"device"`
	Kind       string            `json:"kind"`
	Block      bool              `json:"block"`
	FSType     string            `json:"fsType,omitempty"`
	Mode       string            `json:"mode"`
	MountFlags []string          `json:"mountFlags,omitempty"`
	Targets    map[string]target `json:"targets,omitempty"`
}

// target is how a volume is published at one path.
type target struct {
	ReadOnly bool   `json:"readOnly"`
	Mode     string `json:"mode"`
}

func (t target) access() host.Access {
	if t.ReadOnly {
		return host.ReadOnly
	}
	return host.ReadWrite
}

func newRecord(id volume.ID, path string, c csi.Capability) record {
	return record{
		Volume: id, Path: path, Block: c.Block, FSType: c.EffectiveFSType(), Mode: c.Mode.String(),
		MountFlags: c.MountFlags, Targets: map[string]target{},
	}
}

// Check implements pool.Body.
func (r *record) Check() error {
	if err := r.Volume.Validate(); err != nil {
		return fmt.Errorf("%w: %w", volume.ErrCorrupt, err)
	}
	if r.Block != (r.FSType == "") {
		return fmt.Errorf("block is %t and the filesystem %q: %w", r.Block, r.FSType, volume.ErrCorrupt)
	}
	for _, path := range append(slices.Collect(maps.Keys(r.Targets)), r.Path) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return fmt.Errorf("%q is no absolute and clean path: %w", path, volume.ErrCorrupt)
		}
	}
	return nil
}

// asAsked says whether r was staged with the same capability as want.
func (r record) asAsked(want record) bool {
	return r.Block == want.Block && r.FSType == want.FSType && r.Mode == want.Mode && slices.Equal(r.MountFlags, want.MountFlags)
}

// readOnly says whether nothing may be written to the volume at all.
func (r record) readOnly() bool {
	return r.Mode == csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY.String() || slices.Contains(r.MountFlags, "ro")
}

// records keeps the records in a directory.
type records struct {
	dir string
	log *slog.Logger
}

func openRecords(dir string, log *slog.Logger) (records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return records{}, fmt.Errorf("directory of staged volumes: %w", err)
	}
	return records{dir: dir, log: log}, nil
}

func (r records) path(id volume.ID) string { return filepath.Join(r.dir, string(id)+".json") }

// load returns the record of a volume, and whether there is one. A damaged one
// counts as absent and will be replaced: it is only memory, the truth is in the
// kernel. One of another format version may say what this build can't know, so it
// is ErrFormatVersion, with the file's name, until somebody removes it.
func (r records) load(id volume.ID) (record, bool, error) {
	var rec record
	err := pool.ReadRecord(pool.OS{}, r.path(id), kindStaged, &rec)
	if err == nil && rec.Volume != id {
		err = fmt.Errorf("%s is the record of volume %s: %w", r.path(id), rec.Volume, volume.ErrCorrupt)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return record{}, false, nil
	case errors.Is(err, volume.ErrCorrupt):
		r.log.Warn("record of a staged volume is damaged and will be replaced", "volume", id, "error", err)
		return record{}, false, nil
	case err != nil:
		return record{}, false, fmt.Errorf("record of volume %s: %w", id, err)
	}
	if rec.Targets == nil {
		rec.Targets = map[string]target{}
	}
	return rec, true, nil
}

// save replaces a record atomically and durably. The caller has loaded the one
// before it, so that none of another version is overwritten.
func (r records) save(rec record) error {
	if err := pool.WriteRecord(pool.OS{}, r.path(rec.Volume), kindStaged, &rec); err != nil {
		return fmt.Errorf("record of volume %s: %w", rec.Volume, err)
	}
	return nil
}

// remove forgets a volume.
func (r records) remove(id volume.ID) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the record of volume %s: %w", id, err)
	}
	return pool.OS{}.SyncDir(r.dir)
}
