package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// recordFormat is the version of the file below, which is JSON:
//
//	<state>/staged/<volume id>.json
//	format      1
//	volume      the volume's identifier, as in the file's name
//	path        staging path, with the links of its parents followed
//	device      "/dev/loop3"; "" before the volume was attached
//	kind        how it is exported
//	block, fsType, mode, mountFlags: the capability that it was staged with
//	targets     target path -> how it is published there
const recordFormat = 1

// record is what was asked for when a volume was staged, and where it went.
type record struct {
	Format     int               `json:"format"`
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
		Format: recordFormat, Volume: id, Path: path, Block: c.Block, FSType: c.EffectiveFSType(), Mode: c.Mode.String(),
		MountFlags: c.MountFlags, Targets: map[string]target{},
	}
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

// load returns the record of a volume, and whether there is one. An unreadable
// one counts as absent: it is only memory, the truth is in the kernel.
func (r records) load(id volume.ID) (record, bool, error) {
	data, err := os.ReadFile(r.path(id))
	if errors.Is(err, os.ErrNotExist) {
		return record{}, false, nil
	}
	if err != nil {
		return record{}, false, fmt.Errorf("record of volume %s: %w", id, err)
	}
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil || rec.Format != recordFormat || rec.Volume != id {
		r.log.Warn("record of a staged volume is unreadable and will be replaced", "volume", id, "file", r.path(id), "error", err)
		return record{}, false, nil
	}
	if rec.Targets == nil {
		rec.Targets = map[string]target{}
	}
	return rec, true, nil
}

// save replaces a record atomically and durably.
func (r records) save(rec record) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the record of volume %s: %w", rec.Volume, err)
		}
	}()
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	temporary := r.path(rec.Volume) + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, r.path(rec.Volume)); err != nil {
		return err
	}
	return r.syncDir()
}

// remove forgets a volume.
func (r records) remove(id volume.ID) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the record of volume %s: %w", id, err)
	}
	return r.syncDir()
}

func (r records) syncDir() error {
	d, err := os.Open(r.dir)
	if err != nil {
		return fmt.Errorf("directory of staged volumes: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
