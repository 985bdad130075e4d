package nbd

import (
	"errors"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// errno is an error value of the protocol. The numbers are Linux's, by the
// specification and on every system.
type errno uint32

const (
	errnoPerm     errno = 1
	errnoIO       errno = 5
	errnoNoMemory errno = 12
	errnoInvalid  errno = 22
	errnoNoSpace  errno = 28
	errnoOverflow errno = 75
	errnoNotSup   errno = 95
	errnoShutdown errno = 108
)

// String names the error as the specification does.
func (e errno) String() string {
	switch e {
	case errnoPerm:
		return "EPERM"
	case errnoIO:
		return "EIO"
	case errnoNoMemory:
		return "ENOMEM"
	case errnoInvalid:
		return "EINVAL"
	case errnoNoSpace:
		return "ENOSPC"
	case errnoOverflow:
		return "EOVERFLOW"
	case errnoNotSup:
		return "ENOTSUP"
	case errnoShutdown:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// errnos is how the server tells a device's error, the first that matches.
var errnos = []struct {
	is  error
	say errno
}{
	{volume.ErrNoSpace, errnoNoSpace},
	{volume.ErrInvalid, errnoInvalid},
	{volume.ErrClosed, errnoShutdown},
	{volume.ErrFenced, errnoShutdown},
	{volume.ErrUnsupported, errnoNotSup},
	{volume.ErrUnavailable, errnoNoMemory}, // for the moment
}

// errnoFor turns a device's error into the protocol's. What is beyond the end
// is no space for what would fill it, and invalid for everything else.
func errnoFor(op block.Op, err error) errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, volume.ErrOutOfRange) {
		if op == block.OpWrite || op == block.OpWriteZeroes {
			return errnoNoSpace
		}
		return errnoInvalid
	}
	for _, e := range errnos {
		if errors.Is(err, e.is) {
			return e.say
		}
	}
	return errnoIO
}

// sentinel is how the client reads the protocol's errors.
func (e errno) sentinel() error {
	switch e {
	case errnoNoSpace:
		return volume.ErrNoSpace
	case errnoShutdown:
		return volume.ErrFenced
	case errnoNoMemory:
		return volume.ErrUnavailable
	}
	return volume.ErrFailed
}

// replyTypeFor turns an error of Backend.Open into an option's error reply.
func replyTypeFor(err error) uint32 {
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return repErrUnknown
	case errors.Is(err, volume.ErrInvalid):
		return repErrInvalid
	case errors.Is(err, volume.ErrFenced):
		return repErrPolicy
	case errors.Is(err, volume.ErrUnavailable), errors.Is(err, volume.ErrClosed):
		return repErrShutdown
	}
	return repErrUnknown
}

// refusal is how the client reads an error reply to an option.
func refusal(typ uint32, message string) error {
	sentinel := volume.ErrUnsupported
	switch typ {
	case repErrUnknown:
		sentinel = volume.ErrNotFound
	case repErrInvalid, repErrTooBig:
		sentinel = volume.ErrInvalid
	case repErrPolicy:
		sentinel = volume.ErrFenced
	case repErrShutdown:
		sentinel = volume.ErrUnavailable
	}
	if message == "" {
		message = fmt.Sprintf("error reply %d", typ&^repErrorBit)
	}
	return fmt.Errorf("%w (the server says: %s)", sentinel, message)
}
