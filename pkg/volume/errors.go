package volume

import (
	"errors"
	"fmt"
)

// Sentinel errors. Every layer wraps them with %w and what it knows; package
// rpcerr holds the one ordered table that turns them into gRPC codes, and a
// test there that none is missing.
var (
	// ErrInvalid: the caller's input is wrong; FieldError names the field.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound: the named volume, replica, node or pool does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: it exists already, and differs from what was asked.
	ErrExists = errors.New("already exists with other properties")
	// ErrOutOfRange: a size or offset outside of what is possible.
	ErrOutOfRange = errors.New("out of range")
	// ErrNoSpace: a pool (or all of them) can't hold it. Writes that meet it
	// are paused by the mirror, never failed.
	ErrNoSpace = errors.New("no space left in the pool")
	// ErrPending: another operation on the same volume is under way.
	ErrPending = errors.New("another operation on the volume is pending")
	// ErrHeld: the volume is held by a node whose lease is fresh.
	ErrHeld = errors.New("volume is held by another node")
	// ErrPrecondition: the volume's state doesn't allow the operation now.
	ErrPrecondition = errors.New("the volume's state does not allow this")
	// ErrFenced: the epoch or session presented is lower than one already seen.
	ErrFenced = errors.New("fenced by a newer epoch or session")
	// ErrConflict: a compare-and-swap met another version. Re-read, re-check.
	ErrConflict = errors.New("the object was changed by someone else")
	// ErrUnavailable: a peer or the store can't be reached now; try again.
	ErrUnavailable = errors.New("unavailable")
	// ErrCorrupt: something on disk fails its checksum or contradicts itself.
	ErrCorrupt = errors.New("corrupt")
	// ErrFormatVersion: written by another format version than this build's.
	ErrFormatVersion = errors.New("unsupported format version")
	// ErrFailed: a replica that met a disk error. Never trusted again.
	ErrFailed = errors.New("replica failed")
	// ErrClosed: the object was closed before or during the call.
	ErrClosed = errors.New("closed")
	// ErrUnsupported: this host or build can't do it.
	ErrUnsupported = errors.New("not supported")
)

// Sentinels lists every sentinel error above, for tests that hold tables
// against it.
func Sentinels() []error {
	return []error{
		ErrInvalid, ErrNotFound, ErrExists, ErrOutOfRange, ErrNoSpace, ErrPending, ErrHeld, ErrPrecondition,
		ErrFenced, ErrConflict, ErrUnavailable, ErrCorrupt, ErrFormatVersion, ErrFailed, ErrClosed, ErrUnsupported,
	}
}

// FieldError is an ErrInvalid that names the field and says what it allows.
type FieldError struct {
	Field   string // as the caller knows it: "parameters.replicas"
	Value   string // what was given
	Allowed string // what is allowed, as a phrase
}

// Error implements error.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s: %q is not allowed: must be %s", e.Field, e.Value, e.Allowed)
}

// Unwrap makes errors.Is(err, ErrInvalid) true.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// Invalid makes a FieldError.
func Invalid(field, value, allowed string) error {
	return &FieldError{Field: field, Value: value, Allowed: allowed}
}
