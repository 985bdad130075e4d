// Package record turns the store's objects into bytes and back, the same way
// for every implementation that stores bytes. It keeps no state.
//
// The stored form is one JSON document per object, under the key
// PREFIX + KIND + "/" + KEY:
//
//	field   type    content
//	format  number  2; raised whenever a field is added, removed or changes its
//	                meaning in Object
//	kind    string  "volumes" or "nodes"; must match the key
//	object  object  the JSON form of volume.Volume or volume.Node
//
// Decoding is strict. An update writes the whole object, so a build that
// silently dropped a field it does not know would destroy it: unknown fields in
// a known format are corruption, and a higher format is refused.
package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Format is the format version that this build writes, and the highest that it
// reads.
const Format = 2

// MaxBytes is the largest stored form of an object: what etcd takes by default
// (1.5 MiB per request), with room to spare.
const MaxBytes = 1 << 20

// maxKeyBytes is the longest key: a node's name may have 253 bytes.
const maxKeyBytes = 253

// Kind describes one kind of object.
type Kind[K ~string, T any] struct {
	// Name is the kind's element of the path: "volumes".
	Name string
	// Key returns an object's own key.
	Key func(*T) K
	// Version points at an object's version.
	Version func(*T) *int64
}

// Volumes is the kind of volume.Volume.
var Volumes = Kind[volume.ID, volume.Volume]{
	Name:    "volumes",
	Key:     func(v *volume.Volume) volume.ID { return v.ID },
	Version: func(v *volume.Volume) *int64 { return &v.Version },
}

// Nodes is the kind of volume.Node.
var Nodes = Kind[volume.NodeID, volume.Node]{
	Name:    "nodes",
	Key:     func(n *volume.Node) volume.NodeID { return n.ID },
	Version: func(n *volume.Node) *int64 { return &n.Version },
}

type envelope struct {
	Format int             `json:"format"`
	Kind   string          `json:"kind"`
	Object json.RawMessage `json:"object"`
}

// CheckKey refuses, with ErrInvalid, keys that could not be told apart from
// another kind's or from a part of the path.
func (k Kind[K, T]) CheckKey(key K) error {
	s := string(key)
	if s == "" || len(s) > maxKeyBytes || strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r <= 0x20 || r >= 0x7f }) {
		return volume.Invalid(k.Name+" key", s, "1 to 253 printable ASCII characters without '/' or blanks")
	}
	return nil
}

// CheckStored refuses, with ErrInvalid, an update of an object that was never
// read from or written to a store: it has no version to compare.
func (k Kind[K, T]) CheckStored(obj *T) error {
	if err := k.CheckKey(k.Key(obj)); err != nil {
		return err
	}
	if *k.Version(obj) <= 0 {
		return fmt.Errorf("%s/%s has no version: it was never stored: %w", k.Name, k.Key(obj), volume.ErrInvalid)
	}
	return nil
}

// Path is the object's key below the store's prefix.
func (k Kind[K, T]) Path(key K) string { return k.Name + "/" + string(key) }

// Encode renders an object; ErrInvalid if it has no stored form.
func (k Kind[K, T]) Encode(obj *T) ([]byte, error) {
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s/%s: %w: %w", k.Name, k.Key(obj), volume.ErrInvalid, err)
	}
	data, err := json.Marshal(envelope{Format: Format, Kind: k.Name, Object: raw})
	if err != nil {
		return nil, fmt.Errorf("encode %s/%s: %w: %w", k.Name, k.Key(obj), volume.ErrInvalid, err)
	}
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("encode %s/%s: %d bytes, more than %d: %w", k.Name, k.Key(obj), len(data), MaxBytes, volume.ErrInvalid)
	}
	return data, nil
}

// Decode reads what Encode wrote. Errors name the key and wrap
// ErrFormatVersion or ErrCorrupt.
func (k Kind[K, T]) Decode(key K, data []byte, version int64) (T, error) {
	var zero, obj T
	corrupt := func(why string, args ...any) (T, error) {
		return zero, fmt.Errorf("stored object %s/%q: %s: %w", k.Name, string(key), fmt.Sprintf(why, args...), volume.ErrCorrupt)
	}
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return corrupt("not a JSON document: %v", err)
	}
	switch {
	case env.Format > Format:
		return zero, fmt.Errorf("stored object %s/%q: format %d, this build knows up to %d: %w",
			k.Name, string(key), env.Format, Format, volume.ErrFormatVersion)
	case env.Format < 1:
		return corrupt("format %d", env.Format)
	case env.Kind != k.Name:
		return corrupt("kind %q", env.Kind)
	}
	dec := json.NewDecoder(bytes.NewReader(env.Object))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&obj); err != nil {
		return corrupt("%v", err)
	}
	if k.Key(&obj) != key {
		return corrupt("it names itself %q", string(k.Key(&obj)))
	}
	*k.Version(&obj) = version
	return obj, nil
}
