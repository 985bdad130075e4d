package nbd

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// raw is a client that speaks the protocol by hand, so that it can break it.
type raw struct {
	t testing.TB
	net.Conn
}

// rawDial connects and reads the greeting.
func rawDial(t testing.TB, addr string) *raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := &raw{t, c}
	_ = c.SetDeadline(time.Now().Add(patience))
	b := r.take(greetingBytes)
	if be.Uint64(b) != magicServer || be.Uint64(b[8:]) != magicOption || be.Uint16(b[16:]) != 3 {
		t.Fatalf("greeting % x", b)
	}
	return r
}

// rawOpen negotiates export "x" and reads what GO answers.
func rawOpen(t testing.TB, addr string, options ...[]byte) *raw {
	t.Helper()
	r := rawDial(t, addr)
	r.put(be.AppendUint32(nil, 3))
	for _, o := range options {
		r.put(o)
		for typ := repInfo; typ != repAck; {
			typ, _ = r.optionReply()
			if typ&repErrorBit != 0 {
				t.Fatalf("option refused: %#x", typ)
			}
		}
	}
	r.put(appendOption(nil, optGo, infoRequest{name: "x"}.append(nil)))
	for typ := repInfo; typ != repAck; {
		if typ, _ = r.optionReply(); typ != repInfo && typ != repAck {
			t.Fatalf("GO answered with %#x", typ)
		}
	}
	return r
}

var (
	askStructured = appendOption(nil, optStructuredReply, nil)
	askAllocation = appendOption(nil, optSetMeta, metaRequest{name: "x", queries: []string{contextAllocation}}.append(nil))
)

func (r *raw) put(b []byte) {
	r.t.Helper()
	if _, err := r.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) take(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		r.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return b
}

func (r *raw) optionReply() (uint32, []byte) {
	r.t.Helper()
	h, err := parseOptionReply(r.take(optionReplyBytes))
	if err != nil {
		r.t.Fatal(err)
	}
	return h.typ, r.take(int(h.length))
}

func (r *raw) request(q request, payload []byte) {
	r.t.Helper()
	b := make([]byte, requestBytes, requestBytes+len(payload))
	q.put(b)
	r.put(append(b, payload...))
}

func (r *raw) simple() simple {
	r.t.Helper()
	b := r.take(simpleBytes)
	if be.Uint32(b) != magicSimple {
		r.t.Fatalf("no simple reply: % x", b)
	}
	return parseSimple(b)
}

func (r *raw) chunk() (chunk, []byte) {
	r.t.Helper()
	b := r.take(chunkBytes)
	if be.Uint32(b) != magicChunk {
		r.t.Fatalf("no chunk: % x", b)
	}
	h := parseChunk(b)
	return h, r.take(int(h.length))
}

// closed checks that the server has closed the connection, and said nothing
// more.
func (r *raw) closed() {
	r.t.Helper()
	n, err := r.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		r.t.Errorf("the connection is not closed: %d bytes, %v", n, err)
	}
}

// alive checks that the connection still serves.
func (r *raw) alive() {
	r.t.Helper()
	r.request(request{typ: cmdFlush, cookie: 0xa11e}, nil)
	if got := r.simple(); got != (simple{0, 0xa11e}) {
		r.t.Errorf("a flush is answered %+v", got)
	}
}
