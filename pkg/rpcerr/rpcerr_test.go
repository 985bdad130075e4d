package rpcerr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// wantCodes is the contract with CSI's clients, by sentinel.
var wantCodes = map[error]codes.Code{
	volume.ErrInvalid:       codes.InvalidArgument,
	volume.ErrNotFound:      codes.NotFound,
	volume.ErrExists:        codes.AlreadyExists,
	volume.ErrOutOfRange:    codes.OutOfRange,
	volume.ErrNoSpace:       codes.ResourceExhausted,
	volume.ErrPending:       codes.Aborted,
	volume.ErrHeld:          codes.FailedPrecondition,
	volume.ErrPrecondition:  codes.FailedPrecondition,
	volume.ErrFenced:        codes.FailedPrecondition,
	volume.ErrConflict:      codes.Aborted,
	volume.ErrUnavailable:   codes.Unavailable,
	volume.ErrCorrupt:       codes.DataLoss,
	volume.ErrFormatVersion: codes.FailedPrecondition,
	volume.ErrFailed:        codes.Internal,
	volume.ErrClosed:        codes.Unavailable,
	volume.ErrUnsupported:   codes.FailedPrecondition,
}

func TestEverySentinelGoesThereAndBack(t *testing.T) {
	for _, sentinel := range volume.Sentinels() {
		t.Run(sentinel.Error(), func(t *testing.T) {
			want, ok := wantCodes[sentinel]
			if !ok {
				t.Fatalf("%v is missing in the contract", sentinel)
			}
			err := fmt.Errorf("open replica 7: %w", sentinel)
			if got := rpcerr.Code(err); got != want {
				t.Errorf("Code = %v, want %v", got, want)
			}
			st := rpcerr.ToStatus(err)
			if got := status.Code(st); got != want {
				t.Errorf("status = %v, want %v", got, want)
			}
			back := rpcerr.FromStatus(st)
			if back.Error() != err.Error() {
				t.Errorf("text %q, want %q", back, err)
			}
			for _, other := range volume.Sentinels() {
				if errors.Is(back, other) != (other.Error() == sentinel.Error()) {
					t.Errorf("after the way there and back errors.Is(%v) = %v", other, errors.Is(back, other))
				}
			}
			if again := rpcerr.Code(back); again != want {
				t.Errorf("passed on as %v, want %v", again, want)
			}
		})
	}
	if len(wantCodes) != len(volume.Sentinels()) {
		t.Errorf("%d sentinels, %d in the contract", len(volume.Sentinels()), len(wantCodes))
	}
}

func TestOrder(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want codes.Code
	}{
		{"nil", nil, codes.OK},
		{"invalid beats unavailable", fmt.Errorf("%w: %w", volume.ErrUnavailable, volume.ErrInvalid), codes.InvalidArgument},
		{"fenced beats unavailable", fmt.Errorf("%w: %w", volume.ErrUnavailable, volume.ErrFenced), codes.FailedPrecondition},
		{"a field's error", volume.Invalid("size", "-1", "positive"), codes.InvalidArgument},
		{"a store that did not answer in time", fmt.Errorf("%w: %w", volume.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		{"deadline", fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{"cancelled", context.Canceled, codes.Canceled},
		{"unknown", errors.New("odd"), codes.Internal},
		{"a status stays", status.Error(codes.Unauthenticated, "who?"), codes.Unauthenticated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := rpcerr.Code(tt.err); got != tt.want {
				t.Errorf("Code = %v, want %v", got, tt.want)
			}
			if got := status.Code(rpcerr.ToStatus(tt.err)); got != tt.want {
				t.Errorf("ToStatus = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFromForeignStatus(t *testing.T) {
	tests := []struct {
		code codes.Code
		want []error
	}{
		{codes.InvalidArgument, []error{volume.ErrInvalid}},
		{codes.NotFound, []error{volume.ErrNotFound}},
		{codes.Unavailable, []error{volume.ErrUnavailable}},
		{codes.DeadlineExceeded, []error{volume.ErrUnavailable, context.DeadlineExceeded}},
		{codes.Canceled, []error{context.Canceled}},
		{codes.Unimplemented, []error{volume.ErrUnsupported}},
		{codes.ResourceExhausted, nil}, // gRPC's own: a message too large is not a full pool
		{codes.Internal, nil},
		{codes.Unknown, nil},
	}
	for _, tt := range tests {
		t.Run(tt.code.String(), func(t *testing.T) {
			err := rpcerr.FromStatus(status.Error(tt.code, "said so"))
			if err == nil || !strings.Contains(err.Error(), "said so") {
				t.Fatalf("got %v", err)
			}
			for _, want := range tt.want {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}
			if tt.want == nil {
				for _, s := range volume.Sentinels() {
					if errors.Is(err, s) {
						t.Errorf("%v is %v", err, s)
					}
				}
			}
		})
	}
	if err := rpcerr.FromStatus(nil); err != nil {
		t.Errorf("FromStatus(nil) = %v", err)
	}
	plain := errors.New("no status")
	if err := rpcerr.FromStatus(plain); !errors.Is(err, plain) {
		t.Errorf("FromStatus(plain) = %v", err)
	}
}

func TestMessageIsFitForTheWire(t *testing.T) {
	long := fmt.Errorf("name %q%s\xff: %w", "\xfe", strings.Repeat("é", 5000), volume.ErrInvalid)
	st, _ := status.FromError(rpcerr.ToStatus(long))
	if st.Code() != codes.InvalidArgument || len(st.Message()) > 2100 || !utf8.ValidString(st.Message()) {
		t.Errorf("code %v, %d bytes, valid %v", st.Code(), len(st.Message()), utf8.ValidString(st.Message()))
	}
}
