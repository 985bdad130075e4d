package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestOptions sends one option after the greeting and looks at the reply types.
func TestOptions(t *testing.T) {
	noneLeft(t)
	meta := func(queries ...string) []byte { return metaRequest{"x", queries}.append(nil) }
	s := serve(t, ServerOptions{Backend: &backend{
		exports: map[string]Export{"x": &export{Memory: blocktest.NewMemory(4 << 20)}, "y": &export{}},
		errs:    map[string]error{"fenced": volume.ErrFenced, "away": volume.ErrUnavailable, "bad": volume.ErrInvalid, "ill": volume.ErrFailed},
	}})
	for _, tc := range []struct {
		name  string
		first []byte // sent before
		code  uint32
		data  []byte
		want  []uint32
	}{
		{"starttls", nil, optStartTLS, nil, []uint32{repErrUnsupported}},
		{"unknown option", nil, 77, []byte("whatever"), []uint32{repErrUnsupported}},
		{"extended headers", nil, 11, nil, []uint32{repErrUnsupported}},
		{"list", nil, optList, nil, []uint32{repServer, repServer, repAck}},
		{"list with data", nil, optList, []byte{0}, []uint32{repErrInvalid}},
		{"info", nil, optInfo, infoRequest{name: "x"}.append(nil), []uint32{repInfo, repInfo, repAck}},
		{"info about more", nil, optInfo, infoRequest{"x", []uint16{1, 2, 3, 99}}.append(nil), []uint32{repInfo, repInfo, repAck}},
		{"info of nothing", nil, optInfo, infoRequest{name: "z"}.append(nil), []uint32{repErrUnknown}},
		{"go to nothing", nil, optGo, infoRequest{name: "z"}.append(nil), []uint32{repErrUnknown}},
		{"go to a fenced session", nil, optGo, infoRequest{name: "fenced"}.append(nil), []uint32{repErrPolicy}},
		{"go to a server that ends", nil, optGo, infoRequest{name: "away"}.append(nil), []uint32{repErrShutdown}},
		{"go to a malformed name", nil, optGo, infoRequest{name: "bad"}.append(nil), []uint32{repErrInvalid}},
		{"go to a failed replica", nil, optGo, infoRequest{name: "ill"}.append(nil), []uint32{repErrUnknown}},
		{"go with nothing", nil, optGo, nil, []uint32{repErrInvalid}},
		{"go with a name longer than the data", nil, optGo, []byte{0xff, 0xff, 0xff, 0xff, 'a', 'b'}, []uint32{repErrInvalid}},
		{"go with too many informations", nil, optGo, append(appendString(nil, "x"), 0, 9), []uint32{repErrInvalid}},
		{"go with bytes left over", nil, optGo, append(infoRequest{name: "x"}.append(nil), 1), []uint32{repErrInvalid}},
		{"go with too long a name", nil, optGo, infoRequest{name: strings.Repeat("x", 5000)}.append(nil), []uint32{repErrInvalid}},
		{"structured replies", nil, optStructuredReply, nil, []uint32{repAck}},
		{"structured replies with data", nil, optStructuredReply, []byte{1}, []uint32{repErrInvalid}},
		{"meta context without structured replies", nil, optSetMeta, meta(contextAllocation), []uint32{repErrInvalid}},
		{"meta context", askStructured, optSetMeta, meta(contextAllocation), []uint32{repMetaContext, repAck}},
		{"meta context among others", askStructured, optSetMeta, meta("qemu:x", contextAllocation), []uint32{repMetaContext, repAck}},
		{"unknown meta context", askStructured, optSetMeta, meta("qemu:dirty-bitmap:a"), []uint32{repAck}},
		{"a namespace is no choice", askStructured, optSetMeta, meta(contextBase), []uint32{repAck}},
		{"listing a namespace", askStructured, optListMeta, meta(contextBase), []uint32{repMetaContext, repAck}},
		{"listing all contexts", askStructured, optListMeta, meta(), []uint32{repMetaContext, repAck}},
		{"listing others", askStructured, optListMeta, meta("qemu:"), []uint32{repAck}},
		{"meta context of nothing", askStructured, optSetMeta, metaRequest{"z", []string{contextAllocation}}.append(nil), []uint32{repErrUnknown}},
		{"malformed meta context", askStructured, optSetMeta, append(meta(contextAllocation), 0), []uint32{repErrInvalid}},
		{"meta context with a false count", askStructured, optSetMeta, append(appendString(nil, "x"), 0xff, 0xff, 0xff, 0xff), []uint32{repErrInvalid}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rawDial(t, s.addr)
			r.put(be.AppendUint32(nil, 3))
			if tc.first != nil {
				r.put(tc.first)
				r.optionReply()
			}
			r.put(appendOption(nil, tc.code, tc.data))
			for i, want := range tc.want {
				typ, data := r.optionReply()
				if typ != want {
					t.Fatalf("reply %d is %#x (%q), want %#x", i, typ, data, want)
				}
				if typ&repErrorBit != 0 && len(data) == 0 {
					t.Error("an error without a message")
				}
			}
			// Whatever it was: the negotiation goes on.
			r.put(appendOption(nil, optAbort, nil))
			if typ, _ := r.optionReply(); typ != repAck {
				t.Errorf("ABORT is answered %#x", typ)
			}
			r.closed()
		})
	}
}

// TestHangUp: what ends a negotiation.
func TestHangUp(t *testing.T) {
	noneLeft(t)
	s := one(t, &export{Memory: blocktest.NewMemory(4 << 20)})
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"unknown client flags", be.AppendUint32(nil, 7)},
		{"GO without fixed newstyle", append(be.AppendUint32(nil, 0), appendOption(nil, optGo, infoRequest{name: "x"}.append(nil))...)},
		{"garbage for an option", append(be.AppendUint32(nil, 3), make([]byte, 64)...)},
		{"a huge option", append(be.AppendUint32(nil, 3), be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, magicOption), optGo), 1<<31)...)},
		{"EXPORT_NAME of nothing", append(be.AppendUint32(nil, 3), appendOption(nil, optExportName, []byte("z"))...)},
		{"EXPORT_NAME of too much", append(be.AppendUint32(nil, 3), appendOption(nil, optExportName, make([]byte, 5000))...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rawDial(t, s.addr)
			r.put(tc.send)
			r.closed()
		})
	}
}

func TestTooManyOptions(t *testing.T) {
	r := rawDial(t, one(t, &export{Memory: blocktest.NewMemory(4 << 20)}).addr)
	r.put(be.AppendUint32(nil, 3))
	for range maxOptions {
		r.put(appendOption(nil, optStructuredReply, nil))
		r.optionReply()
	}
	r.closed()
}

func TestExportName(t *testing.T) {
	s := one(t, &export{Memory: blocktest.NewMemory(4 << 20), readOnly: true})
	for _, tc := range []struct {
		name   string
		flags  uint32
		zeroes int
	}{
		{"oldest clients", 0, exportReplyZeroes}, {"fixed", 1, exportReplyZeroes}, {"without zeroes", 3, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rawDial(t, s.addr)
			r.put(appendOption(be.AppendUint32(nil, tc.flags), optExportName, []byte("x")))
			b := r.take(10 + tc.zeroes)
			want := flagHasFlags | flagReadOnly | flagFlush | flagFUA | flagTrim | flagWriteZeroes
			if be.Uint64(b) != 4<<20 || be.Uint16(b[8:]) != want {
				t.Errorf("answer % x", b[:10])
			}
			r.alive()
		})
	}
}

func TestInformation(t *testing.T) {
	r := rawDial(t, one(t, &export{Memory: blocktest.NewMemory(4 << 20)}).addr)
	r.put(append(be.AppendUint32(nil, 3), askStructured...))
	r.optionReply()
	r.put(appendOption(nil, optGo, infoRequest{name: "x"}.append(nil)))
	var e exportInfo
	var b blockSizes
	for range 2 {
		_, data := r.optionReply()
		if err := parseInfo(data, &e, &b); err != nil {
			t.Fatal(err)
		}
	}
	if want := (exportInfo{4 << 20, flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagDF}); e != want {
		t.Errorf("export %+v, want %+v: CAN_MULTI_CONN and CACHE are not true of it", e, want)
	}
	if want := (blockSizes{1, 4096, 1 << 20}); b != want {
		t.Errorf("block sizes %+v, want %+v", b, want)
	}
}

// TestInfoThenGoOpensOnce: a session may be opened by one connection only, and
// only once; so INFO, SET_META_CONTEXT and GO must share one opening.
func TestInfoThenGoOpensOnce(t *testing.T) {
	noneLeft(t)
	x, y := &export{Memory: blocktest.NewMemory(4 << 20)}, &export{Memory: blocktest.NewMemory(4 << 20)}
	b := &backend{exports: map[string]Export{"x": x, "y": y}}
	s := serve(t, ServerOptions{Backend: b})
	r := rawDial(t, s.addr)
	r.put(append(be.AppendUint32(nil, 3), askStructured...))
	r.optionReply()
	ask := func(code uint32, data []byte) {
		r.put(appendOption(nil, code, data))
		for typ := repInfo; typ != repAck; {
			if typ, _ = r.optionReply(); typ&repErrorBit != 0 {
				t.Fatalf("refused: %#x", typ)
			}
		}
	}
	ask(optInfo, infoRequest{name: "y"}.append(nil))
	ask(optInfo, infoRequest{name: "x"}.append(nil))
	ask(optSetMeta, metaRequest{"x", []string{contextAllocation}}.append(nil))
	ask(optGo, infoRequest{name: "x"}.append(nil))
	if b.opened != 2 || y.closed.Load() != 1 || x.closed.Load() != 0 {
		t.Errorf("opened %d times, y closed %d, x %d", b.opened, y.closed.Load(), x.closed.Load())
	}
	r.alive()
	_ = r.Close()
	s.stop()
	if x.closed.Load() != 1 {
		t.Errorf("x was closed %d times", x.closed.Load())
	}
}

// TestAbandonedNegotiationClosesTheExport: a client that asks and leaves.
func TestAbandonedNegotiationClosesTheExport(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	s := one(t, x)
	r := rawDial(t, s.addr)
	r.put(appendOption(be.AppendUint32(nil, 3), optInfo, infoRequest{name: "x"}.append(nil)))
	r.optionReply()
	_ = r.Close()
	s.stop()
	if x.closed.Load() != 1 {
		t.Errorf("closed %d times", x.closed.Load())
	}
}

// TestMetaContextOfAnotherExport: a context chosen for one export is none for
// another.
func TestMetaContextOfAnotherExport(t *testing.T) {
	m := blocktest.NewMemory(4 << 20)
	s := serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": &export{Memory: m}, "y": &export{Memory: m}}}})
	other := appendOption(nil, optSetMeta, metaRequest{"y", []string{contextAllocation}}.append(nil))
	r := rawOpen(t, s.addr, askStructured, other)
	r.request(request{typ: cmdBlockStatus, cookie: 5, length: 4096}, nil)
	h, data := r.chunk()
	if e, _, _ := parseErrorData(data); h.typ != chunkError || e != errnoInvalid {
		t.Errorf("answered %+v % x", h, data)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	noneLeft(t)
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"silence", nil},
		{"silence after an option", append(be.AppendUint32(nil, 3), askStructured...)},
		{"half an option", append(be.AppendUint32(nil, 3), askStructured[:9]...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, ServerOptions{Backend: &backend{}, HandshakeTimeout: 100 * time.Millisecond})
			r := rawDial(t, s.addr)
			r.put(tc.send)
			for {
				if _, err := r.Read(make([]byte, 64)); err != nil {
					break
				}
			}
		})
	}
}

// TestRefusals: what a client's Dial makes of the server's refusal.
func TestRefusals(t *testing.T) {
	noneLeft(t)
	errs := map[string]error{"failed": volume.ErrFailed}
	for i, s := range volume.Sentinels() {
		errs[fmt.Sprint("e", i)] = s
	}
	s := serve(t, ServerOptions{Backend: &backend{errs: errs}})
	want := map[error]error{
		volume.ErrNotFound: volume.ErrNotFound, volume.ErrInvalid: volume.ErrInvalid, volume.ErrFenced: volume.ErrFenced,
		volume.ErrUnavailable: volume.ErrUnavailable, volume.ErrClosed: volume.ErrUnavailable,
	}
	for name, refuse := range errs {
		t.Run(refuse.Error(), func(t *testing.T) {
			w, ok := want[refuse]
			if !ok {
				w = volume.ErrNotFound
			}
			_, err := Dial(context.Background(), DialOptions{Addr: s.addr, Name: name})
			if !errors.Is(err, w) || !strings.Contains(err.Error(), refuse.Error()) {
				t.Errorf("got %v, want %v with the server's text", err, w)
			}
		})
	}
}

func TestDialFails(t *testing.T) {
	noneLeft(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	for _, tc := range []struct {
		name, addr, export string
		want               error
	}{
		{"nobody listens", gone.Addr().String(), "x", volume.ErrUnavailable},
		{"no such socket", "/nonexistent/socket", "x", volume.ErrUnavailable},
		{"a silent server", silent.Addr().String(), "x", volume.ErrUnavailable},
		{"too long a name", silent.Addr().String(), strings.Repeat("x", 5000), volume.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if _, err := Dial(ctx, DialOptions{Addr: tc.addr, Name: tc.export}); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
