package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// FormatVersion is the version of all records that this build writes, and the
// only one that it reads.
const FormatVersion = 1

// MaxRecordBytes bounds a record's file, so that a wrong file is not read whole.
const MaxRecordBytes = 64 << 10

// Kind says what a record is, so that one file is never taken for another.
type Kind string

// KindPool is the kind of pool.json.
const KindPool Kind = "holdfast-pool"

type envelope struct {
	Kind   Kind            `json:"kind"`
	Format int             `json:"format"`
	CRC32C string          `json:"crc32c"`
	Body   json.RawMessage `json:"body"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Body is what a record holds: a pointer to a struct for encoding/json.
type Body interface {
	// Check says why the content contradicts itself, as ErrCorrupt; it is asked
	// after each decoding.
	Check() error
}

// EncodeRecord renders body as a record of a kind, indented for people.
// ErrOutOfRange: it would be larger than MaxRecordBytes, and could not be read.
func EncodeRecord(kind Kind, body Body) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	out, err := json.MarshalIndent(envelope{Kind: kind, Format: FormatVersion, CRC32C: checksum(raw), Body: raw}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	if out = append(out, '\n'); len(out) > MaxRecordBytes {
		return nil, fmt.Errorf("encode %s: %d bytes, more than %d: %w", kind, len(out), MaxRecordBytes, volume.ErrOutOfRange)
	}
	return out, nil
}

func checksum(compact []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(compact, castagnoli))
}

// DecodeRecord reads what EncodeRecord wrote into body. ErrCorrupt: damaged or
// cut short. ErrFormatVersion: a record of another kind, or of another format
// version; it is left as it is.
func DecodeRecord(kind Kind, data []byte, body Body) error {
	if len(data) > MaxRecordBytes {
		return fmt.Errorf("more than %d bytes: %w", MaxRecordBytes, volume.ErrCorrupt)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("not a JSON object of %d bytes (%w): %w", len(data), err, volume.ErrCorrupt)
	}
	// The kind and the version come before the checksum: how later versions
	// compute theirs is not known here.
	if e.Kind != kind {
		return fmt.Errorf("a record of kind %q instead of %q, not written by Holdfast for this place: %w", e.Kind, kind, volume.ErrFormatVersion)
	}
	if e.Format != FormatVersion {
		return fmt.Errorf("format version %d, this build reads only %d; use the Holdfast that wrote it: %w", e.Format, FormatVersion, volume.ErrFormatVersion)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, e.Body); err != nil {
		return fmt.Errorf("body (%w): %w", err, volume.ErrCorrupt)
	}
	if sum := checksum(compact.Bytes()); sum != e.CRC32C {
		return fmt.Errorf("checksum %q, computed %q: %w", e.CRC32C, sum, volume.ErrCorrupt)
	}
	dec := json.NewDecoder(&compact)
	dec.DisallowUnknownFields()
	if err := dec.Decode(body); err != nil {
		return fmt.Errorf("body (%w): %w", err, volume.ErrCorrupt)
	}
	return body.Check()
}

// ReadRecord reads the record at path. Errors are DecodeRecord's, and
// os.ErrNotExist.
func ReadRecord(fs FS, path string, kind Kind, body Body) error {
	data, err := fs.ReadFile(path, MaxRecordBytes)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := DecodeRecord(kind, data, body); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// WriteRecord replaces the record at path, durably and atomically: after a
// crash at any moment the old or the new one is there, whole. After an error
// either may be.
func WriteRecord(fs FS, path string, kind Kind, body Body) error {
	data, err := EncodeRecord(kind, body)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := writeSynced(fs, tmp, data); err != nil {
		return fmt.Errorf("write %s: %w", tmp, errors.Join(noSpace(err), fs.RemoveAll(tmp)))
	}
	// The bytes are durable before the name points at them; the name is durable
	// before anybody is told.
	if err := fs.Rename(tmp, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, noSpace(err))
	}
	if err := fs.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync directory of %s: %w", path, err)
	}
	return nil
}

func writeSynced(fs FS, path string, data []byte) error {
	f, err := fs.Create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// readIdentity reads pool.json; ok is false when there is none.
func readIdentity(path string) (id identity, ok bool, err error) {
	err = ReadRecord(OS{}, path, KindPool, &id)
	if errors.Is(err, os.ErrNotExist) {
		return identity{}, false, nil
	}
	if err != nil {
		return identity{}, false, err
	}
	return id, true, nil
}
