// Package rpcerr is the one place where Holdfast's errors become gRPC status
// codes and back: the sentinel errors of package volume on one side, the codes
// of CSI v1.13 on the other. Only the gRPC edges (packages csi and agent) use
// it. It keeps no state.
//
// A status made here carries a google.rpc.ErrorInfo with the sentinel's name,
// so that FromStatus gives back exactly the sentinel that ToStatus met, though
// several share a code. A status from elsewhere is mapped by its code.
package rpcerr

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Domain is the domain of our ErrorInfo details.
const Domain = "holdfast.io"

// maxMessageBytes bounds a status message: status travels in HTTP/2 trailers,
// whose size peers limit, and a message that is too long would lose its code.
const maxMessageBytes = 2048

// entry is one row of the table.
type entry struct {
	sentinel error
	code     codes.Code
	reason   string // in ErrorInfo; part of the wire format, never changed
}

// table is ordered: an error that wraps several sentinels gets the first row
// that it matches. What no retry can cure comes before what one may, and
// "unavailable" comes last, because layers add it to what they could not reach.
var table = []entry{
	{volume.ErrInvalid, codes.InvalidArgument, "INVALID"},
	{volume.ErrOutOfRange, codes.OutOfRange, "OUT_OF_RANGE"},
	// DATA_LOSS says "unrecoverable data loss or corruption" and nothing else
	// does; for the sidecars it is as final as INTERNAL, and people can tell
	// a damaged replica from a bug.
	{volume.ErrCorrupt, codes.DataLoss, "CORRUPT"},
	// The call is right and the data is whole, but it takes another build, or
	// another host: a state that someone has to change first.
	{volume.ErrFormatVersion, codes.FailedPrecondition, "FORMAT_VERSION"},
	{volume.ErrUnsupported, codes.FailedPrecondition, "UNSUPPORTED"},
	{volume.ErrFailed, codes.Internal, "FAILED"},
	{volume.ErrFenced, codes.FailedPrecondition, "FENCED"},
	{volume.ErrHeld, codes.FailedPrecondition, "HELD"},
	{volume.ErrPrecondition, codes.FailedPrecondition, "PRECONDITION"},
	{volume.ErrExists, codes.AlreadyExists, "EXISTS"},
	{volume.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{volume.ErrNoSpace, codes.ResourceExhausted, "NO_SPACE"},
	{volume.ErrPending, codes.Aborted, "PENDING"},
	{volume.ErrConflict, codes.Aborted, "CONFLICT"},
	// Closed is met while a process shuts down: its successor will answer.
	{volume.ErrClosed, codes.Unavailable, "CLOSED"},
	{volume.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
}

// foreign maps the codes of statuses that were not made here. The rest, such as
// RESOURCE_EXHAUSTED, which gRPC itself uses for messages that are too large,
// maps to no sentinel.
var foreign = map[codes.Code][]error{
	codes.InvalidArgument:    {volume.ErrInvalid},
	codes.OutOfRange:         {volume.ErrOutOfRange},
	codes.NotFound:           {volume.ErrNotFound},
	codes.AlreadyExists:      {volume.ErrExists},
	codes.FailedPrecondition: {volume.ErrPrecondition},
	codes.Aborted:            {volume.ErrPending},
	codes.DataLoss:           {volume.ErrCorrupt},
	codes.Unimplemented:      {volume.ErrUnsupported},
	codes.Unavailable:        {volume.ErrUnavailable},
	codes.DeadlineExceeded:   {volume.ErrUnavailable, context.DeadlineExceeded},
	codes.Canceled:           {context.Canceled},
}

// Code is the code that ToStatus gives err; OK for nil.
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if e, ok := lookup(err); ok {
		return e.code
	}
	return other(err)
}

// ToStatus turns an error into a status error for a gRPC handler to return. A
// nil error stays nil; an error that is a status error already stays as it is;
// one that wraps no sentinel becomes CANCELLED, DEADLINE_EXCEEDED or INTERNAL.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	message := clip(err.Error())
	e, ok := lookup(err)
	if !ok {
		return status.Error(other(err), message)
	}
	info := &errdetails.ErrorInfo{Reason: e.reason, Domain: Domain}
	st, detailErr := status.New(e.code, message).WithDetails(info)
	if detailErr != nil { // only for the code OK, which is not in the table
		return status.Error(e.code, message)
	}
	return st.Err()
}

// FromStatus turns an error that a gRPC client got into one that wraps the
// sentinel that the server met, or for foreign statuses the one that fits the
// code (DEADLINE_EXCEEDED: ErrUnavailable and context.DeadlineExceeded). The
// text is the server's. Errors that are no status come back as they are.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if e, ok := fromInfo(st); ok {
		return &remoteError{message: st.Message(), causes: []error{e.sentinel}}
	}
	return &remoteError{message: st.Message() + " (" + st.Code().String() + ")", causes: foreign[st.Code()]}
}

// remoteError is an error that happened on the other side.
type remoteError struct {
	message string
	causes  []error
}

func (e *remoteError) Error() string   { return e.message }
func (e *remoteError) Unwrap() []error { return e.causes }

func lookup(err error) (entry, bool) {
	for _, e := range table {
		if errors.Is(err, e.sentinel) {
			return e, true
		}
	}
	return entry{}, false
}

// other is the code of an error that wraps no sentinel.
func other(err error) codes.Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Code()
	}
	return codes.Internal
}

func fromInfo(st *status.Status) (entry, bool) {
	for _, detail := range st.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != Domain {
			continue
		}
		for _, e := range table {
			if e.reason == info.GetReason() && e.code == st.Code() {
				return e, true
			}
		}
	}
	return entry{}, false
}

// clip makes a text fit for a status: valid UTF-8 of bounded length.
func clip(s string) string {
	if len(s) > maxMessageBytes {
		s = s[:maxMessageBytes] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
