package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ID names a volume in the store, in CSI calls and on the wire: "hv-" and 32
// lower-case hexadecimal digits. It is derived from the caller's name, so that
// CreateVolume is idempotent without a second index.
type ID string

// UID is the identity of one creation of a volume (a random UUID). A volume
// that is deleted and created again under the same name keeps its ID and gets
// another UID; replicas are bound to the UID.
type UID string

// NodeID names a node: a DNS-1123 subdomain of at most 253 bytes, as
// Kubernetes names nodes.
type NodeID string

// Epoch fences old writers; it only grows, and starts at 1 with the first
// opening of the volume. 0 means "never opened".
type Epoch uint64

// Session numbers the connection lives of one mirror within an epoch. It only
// grows within an epoch, and starts at 1.
type Session uint32

// Incarnation names the time through which a replica has forgotten nothing that it
// was told, flushed or not: it changes when its node loses its memory, and not when
// only a process is restarted. "" is not known, and equals none.
type Incarnation string

// MaxNameBytes is the longest volume name that CSI v1.13 allows.
const MaxNameBytes = 128

var (
	idPattern   = regexp.MustCompile(`^hv-[0-9a-f]{32}$`)
	uidPattern  = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	poolPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	nodePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// IDFor derives the ID of the volume that a caller named. The name must have
// passed ValidateName.
func IDFor(name string) ID {
	sum := sha256.Sum256([]byte("holdfast-volume\x00" + name))
	return ID("hv-" + hex.EncodeToString(sum[:16]))
}

// ValidateName says whether a caller may give a volume this name. The name is
// only ever hashed and stored, never part of a path, but names that could be
// mistaken for one are refused all the same.
func ValidateName(name string) error {
	const allowed = "1 to 128 bytes of printable UTF-8 without '/', and not '.' or '..'"
	switch {
	case name == "":
		return Invalid("name", name, allowed)
	case len(name) > MaxNameBytes, !utf8.ValidString(name), name == ".", name == "..":
		return Invalid("name", name, allowed)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || invisible(r) }):
		return Invalid("name", name, allowed)
	}
	return nil
}

// invisible says whether r shows as nothing, or changes how what is around it
// shows: control characters (C0, DEL, C1), format characters such as those that
// turn the direction of writing, and separators of lines and paragraphs.
func invisible(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// PoolNameAllowed says in words what ValidatePoolName accepts.
const PoolNameAllowed = "a DNS-1123 label: 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"

// ValidatePoolName says whether a pool may have this name; field is what the
// caller calls it. A name that passes is safe as a path element.
func ValidatePoolName(field, name string) error {
	if !poolPattern.MatchString(name) {
		return Invalid(field, name, PoolNameAllowed)
	}
	return nil
}

// Validate says whether id has the form of an ID. An ID that passes is safe as
// a path element.
func (id ID) Validate() error {
	if !idPattern.MatchString(string(id)) {
		return Invalid("volume_id", string(id), "\"hv-\" and 32 lower-case hexadecimal digits")
	}
	return nil
}

// Validate says whether u has the form of a UID. A UID that passes is safe as a
// path element.
func (u UID) Validate() error {
	if !uidPattern.MatchString(string(u)) {
		return Invalid("volume_uid", string(u), "a lower-case UUID")
	}
	return nil
}

// Validate says whether n has the form of a node's name. A NodeID that passes
// is safe as a path element.
func (n NodeID) Validate() error {
	if len(n) > 253 || !nodePattern.MatchString(string(n)) {
		return Invalid("node_id", string(n), "a DNS-1123 subdomain of at most 253 bytes")
	}
	return nil
}
