package nbd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestBytes holds the codec against bytes written down by hand after the
// specification.
func TestBytes(t *testing.T) {
	head := func(put func([]byte), n int) []byte {
		b := make([]byte, n)
		put(b)
		return b
	}
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"request", head(request{cmdFlagFUA, cmdWrite, 0x0102030405060708, 0x1000, 4096}.put, requestBytes),
			"25609513 0001 0001 0102030405060708 0000000000001000 00001000"},
		{"simple reply", head(simple{errnoNoSpace, 7}.put, simpleBytes), "67446698 0000001c 0000000000000007"},
		{"chunk", head(chunk{chunkFlagDone, chunkError, 7, 9}.put, chunkBytes), "668e33ef 0001 8001 0000000000000007 00000009"},
		{"error data", appendErrorData(nil, errnoIO, "abc"), "00000005 0003 616263"},
		{"option", appendOption(nil, optGo, []byte{0xaa}), "49484156454f5054 00000007 00000001 aa"},
		{"option reply", appendOptionReply(nil, optGo, repErrUnknown, nil), "0003e889045565a9 00000007 80000006 00000000"},
		{"info request", infoRequest{"ab", []uint16{infoBlockSize}}.append(nil), "00000002 6162 0001 0003"},
		{"meta request", metaRequest{"a", []string{"base:"}}.append(nil), "00000001 61 00000001 00000005 626173653a"},
		{"export", exportInfo{1 << 30, 0x6d}.append(nil), "0000 0000000040000000 006d"},
		{"block size", blockSizes{1, 4096, 1 << 20}.append(nil), "0003 00000001 00001000 00100000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(tc.got, want) {
				t.Errorf("got  %x\nwant %x", tc.got, want)
			}
		})
	}
}

func TestExtents(t *testing.T) {
	data, hole := block.Extent{Len: 10}, block.Extent{Len: 10, Hole: true}
	for _, tc := range []struct {
		name   string
		in     []block.Extent
		length int64
		limit  int
		want   []block.Extent
		done   int64
	}{
		{"as they are", []block.Extent{data, hole}, 20, 9, []block.Extent{data, hole}, 20},
		{"neighbours are merged", []block.Extent{data, data, hole, hole}, 40, 9, []block.Extent{{Len: 20}, {Len: 20, Hole: true}}, 40},
		{"the rest is cut off", []block.Extent{data, hole}, 15, 9, []block.Extent{data, {Len: 5, Hole: true}}, 15},
		{"empty ones are left out", []block.Extent{{}, data, {Hole: true}, data}, 20, 9, []block.Extent{{Len: 20}}, 20},
		{"one, whole", []block.Extent{data, data, hole, data}, 40, 1, []block.Extent{{Len: 20}}, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, done := appendExtents(nil, tc.in, tc.length, tc.limit)
			got, err := parseExtents(b, contextAllocationID)
			if err != nil || done != tc.done || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v (%d bytes), %v; want %v (%d)", got, done, err, tc.want, tc.done)
			}
		})
	}
}

// TestErrnoCoversSentinels: every sentinel has an error of the protocol, and
// those that the mirror treats apart come back as themselves.
func TestErrnoCoversSentinels(t *testing.T) {
	want := map[error]errno{
		volume.ErrNoSpace: errnoNoSpace, volume.ErrInvalid: errnoInvalid, volume.ErrClosed: errnoShutdown,
		volume.ErrFenced: errnoShutdown, volume.ErrUnsupported: errnoNotSup, volume.ErrOutOfRange: errnoInvalid,
		volume.ErrUnavailable: errnoNoMemory,
	}
	for _, s := range volume.Sentinels() {
		w, ok := want[s]
		if !ok {
			w = errnoIO
		}
		if got := errnoFor(block.OpRead, s); got != w {
			t.Errorf("%v becomes %v, want %v", s, got, w)
		}
	}
	if got := errnoFor(block.OpWrite, volume.ErrOutOfRange); got != errnoNoSpace {
		t.Errorf("a write out of range becomes %v", got)
	}
	for _, tc := range []struct{ in, out error }{
		{volume.ErrNoSpace, volume.ErrNoSpace}, {volume.ErrFenced, volume.ErrFenced},
		{volume.ErrClosed, volume.ErrFenced}, {volume.ErrFailed, volume.ErrFailed}, {volume.ErrInvalid, volume.ErrFailed},
		{volume.ErrUnavailable, volume.ErrUnavailable},
	} {
		if got := errnoFor(block.OpWrite, tc.in).sentinel(); !errors.Is(got, tc.out) {
			t.Errorf("%v arrives as %v, want %v", tc.in, got, tc.out)
		}
	}
}

func TestSpeed(t *testing.T) {
	var s speed
	if s.slow() {
		t.Fatal("slow from the start")
	}
	s.note(10*quickTime, 4096)
	for i := range slowStep {
		if !s.slow() {
			t.Fatalf("quick again after %d quick requests", i)
		}
		s.note(0, 4096)
	}
	if s.slow() {
		t.Error("still slow")
	}
	s.note(5*quickTime, 1<<20)
	if s.slow() {
		t.Error("the time that copying takes counts as slowness")
	}
}

func TestPoolClasses(t *testing.T) {
	var p pool
	for _, n := range []int{1, 4096, 4097, 8192, 65537, maxPayload - 1, maxPayload} {
		b := p.get(n)
		if len(b.data) < n || len(b.data) >= 2*n && len(b.data) > 4096 {
			t.Errorf("a buffer of %d bytes for %d", len(b.data), n)
		}
		p.put(b)
	}
}

func TestQueueKeepsOrder(t *testing.T) {
	var q queue
	var pushed, popped int64
	for range 1000 {
		for range pushed % 7 {
			q.push(&block.IO{Off: pushed})
			pushed++
		}
		q.push(&block.IO{Off: pushed})
		pushed++
		for range min(pushed%5, pushed-popped) {
			if io := q.pop(); io.Off != popped {
				t.Fatalf("got %d, want %d", io.Off, popped)
			}
			popped++
		}
	}
	for ; !q.empty(); popped++ {
		if io := q.pop(); io.Off != popped {
			t.Fatalf("got %d, want %d", io.Off, popped)
		}
	}
	if popped != pushed {
		t.Errorf("%d of %d came out", popped, pushed)
	}
}

func TestProtocolErrorsAreTold(t *testing.T) {
	_, err := parseRequest(make([]byte, requestBytes))
	var p protocolError
	if !errors.As(err, &p) {
		t.Errorf("%v is no protocol error", err)
	}
}
