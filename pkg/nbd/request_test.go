package nbd

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// TestBadRequests: requests that are refused while the connection goes on, and
// leave the device alone.
func TestBadRequests(t *testing.T) {
	noneLeft(t)
	const size = 4 << 20
	for _, tc := range []struct {
		name     string
		readOnly bool
		req      request
		want     errno
	}{
		{"read past the end", false, request{typ: cmdRead, off: size, length: 1}, errnoInvalid},
		{"read across the end", false, request{typ: cmdRead, off: size - 1, length: 2}, errnoInvalid},
		{"read at the end of the numbers", false, request{typ: cmdRead, off: 1<<64 - 1, length: 1}, errnoInvalid},
		{"read that overflows", false, request{typ: cmdRead, off: 1<<63 - 1, length: 1 << 20}, errnoInvalid},
		{"read of too much", false, request{typ: cmdRead, length: maxPayload + 1}, errnoInvalid},
		{"read of far too much", false, request{typ: cmdRead, length: 1<<32 - 1}, errnoInvalid},
		{"read with DF without structured replies", false, request{typ: cmdRead, flags: cmdFlagDF, length: 512}, errnoInvalid},
		{"write past the end", false, request{typ: cmdWrite, off: size, length: 512}, errnoNoSpace},
		{"write across the end", false, request{typ: cmdWrite, off: size - 511, length: 512}, errnoNoSpace},
		{"write at a negative offset", false, request{typ: cmdWrite, off: 1 << 63, length: 512}, errnoNoSpace},
		{"write of too much", false, request{typ: cmdWrite, length: maxPayload + 1}, errnoInvalid},
		{"write of as much as others allow", false, request{typ: cmdWrite, length: defaultMaxPayload}, errnoInvalid},
		{"write with an unknown flag", false, request{typ: cmdWrite, flags: 1 << 9, length: 512}, errnoInvalid},
		{"write to a read-only export", true, request{typ: cmdWrite, length: 4096}, errnoPerm},
		{"trim of a read-only export", true, request{typ: cmdTrim, length: 4096}, errnoPerm},
		{"zeroes for a read-only export", true, request{typ: cmdWriteZeroes, length: 4096}, errnoPerm},
		{"trim past the end", false, request{typ: cmdTrim, off: size - 1, length: 2}, errnoInvalid},
		{"zeroes past the end", false, request{typ: cmdWriteZeroes, off: size - 1, length: 2}, errnoNoSpace},
		{"flush with an unknown flag", false, request{typ: cmdFlush, flags: cmdFlagNoHole}, errnoInvalid},
		{"cache", false, request{typ: 5, length: 4096}, errnoInvalid},
		{"an unknown command", false, request{typ: 0xffff, length: 4096}, errnoInvalid},
		{"block status that was not negotiated", false, request{typ: cmdBlockStatus, length: 4096}, errnoInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := &export{Memory: blocktest.NewMemory(size), readOnly: tc.readOnly}
			r := rawOpen(t, one(t, x).addr)
			tc.req.cookie = 0xfeed
			var payload []byte
			if tc.req.typ == cmdWrite {
				payload = bytes.Repeat([]byte{1}, int(tc.req.length))
			}
			r.request(tc.req, payload)
			if got := r.simple(); got != (simple{tc.want, 0xfeed}) {
				t.Errorf("answered %v, want %v", got, tc.want)
			}
			r.alive()
			if !bytes.Equal(x.Bytes(), make([]byte, size)) {
				t.Error("the device was changed")
			}
		})
	}
}

func TestEmptyRequests(t *testing.T) {
	r := rawOpen(t, one(t, &export{Memory: blocktest.NewMemory(4 << 20)}).addr)
	for _, typ := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes} {
		r.request(request{typ: typ, cookie: 3}, nil)
		if got := r.simple(); got != (simple{0, 3}) {
			t.Errorf("an empty %s is answered %v", opOf(typ), got)
		}
	}
	r.alive()
}

// TestBrokenFraming: after these the server can't know where the next request
// begins.
func TestBrokenFraming(t *testing.T) {
	noneLeft(t)
	header := func(q request) []byte {
		b := make([]byte, requestBytes)
		q.put(b)
		return b
	}
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"garbage", bytes.Repeat([]byte("garbage!"), 10)},
		{"a reply", append(be.AppendUint32(nil, magicSimple), make([]byte, 24)...)},
		{"a write of 4 GiB", header(request{typ: cmdWrite, length: 1<<32 - 1})},
		{"a write of more than anybody allows", header(request{typ: cmdWrite, length: defaultMaxPayload + 1})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := &export{Memory: blocktest.NewMemory(4 << 20)}
			r := rawOpen(t, one(t, x).addr)
			r.put(tc.send)
			r.closed()
			if n := x.Count(block.OpWrite); n != 0 {
				t.Errorf("%d writes reached the device", n)
			}
		})
	}
}

// TestHalfARequest: what arrived in part must not reach the device, whether the
// client hangs up or falls silent.
func TestHalfARequest(t *testing.T) {
	noneLeft(t)
	whole := make([]byte, requestBytes, requestBytes+512<<10)
	request{typ: cmdWrite, length: 512 << 10}.put(whole)
	whole = append(whole, fill(make([]byte, 512<<10), 9)...)
	for _, tc := range []struct {
		name string
		n    int
	}{
		{"header", 5}, {"header alone", requestBytes}, {"some payload", 3000}, {"nearly all", len(whole) - 1},
	} {
		for _, hangUp := range []string{"hangs up", "falls silent"} {
			t.Run(tc.name+", then "+hangUp, func(t *testing.T) {
				x := &export{Memory: blocktest.NewMemory(4 << 20)}
				s := serve(t, ServerOptions{
					Backend: &backend{exports: map[string]Export{"x": x}}, RequestTimeout: 50 * time.Millisecond,
				})
				r := rawOpen(t, s.addr)
				r.alive()
				r.put(whole[:tc.n])
				if hangUp == "hangs up" {
					_ = r.Close()
					s.stop()
				} else {
					r.closed()
				}
				if n := x.Count(block.OpWrite); n != 0 {
					t.Errorf("%d writes reached the device", n)
				}
			})
		}
	}
}

// TestSilenceIsAllowed: the time for the rest of a request is none for the time
// between requests.
func TestSilenceIsAllowed(t *testing.T) {
	s := serve(t, ServerOptions{
		Backend:        &backend{exports: map[string]Export{"x": &export{Memory: blocktest.NewMemory(4 << 20)}}},
		RequestTimeout: 20 * time.Millisecond,
	})
	r := rawOpen(t, s.addr)
	head := make([]byte, requestBytes)
	request{typ: cmdFlush, cookie: 1}.put(head)
	r.put(head[:9]) // arms the deadline
	r.put(head[9:])
	if got := r.simple(); got != (simple{0, 1}) {
		t.Fatalf("answered %v", got)
	}
	_ = r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := r.Read(make([]byte, 1)); n != 0 || !isTimeout(err) {
		t.Fatalf("an idle connection got %d bytes, %v", n, err)
	}
	_ = r.SetReadDeadline(time.Now().Add(patience))
	r.alive()
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// TestDisconnect: everything before DISC is answered, then the connection ends.
func TestDisconnect(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	x.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite })
	r := rawOpen(t, one(t, x).addr)
	for i := range uint64(3) {
		r.request(request{typ: cmdWrite, cookie: i, off: i << 12, length: 4096}, make([]byte, 4096))
	}
	r.request(request{typ: cmdDisconnect}, nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.WaitHeld(ctx, 3); err != nil {
		t.Fatal(err)
	}
	x.Release(-1)
	seen := map[uint64]bool{}
	for range 3 {
		seen[r.simple().cookie] = true
	}
	if len(seen) != 3 {
		t.Errorf("answered: %v", seen)
	}
	r.closed()
}

func TestStructuredReplies(t *testing.T) {
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	data := fill(make([]byte, 8192), 3)
	if err := block.WriteAt(x, data, 4096); err != nil {
		t.Fatal(err)
	}
	r := rawOpen(t, one(t, x).addr, askStructured, askAllocation)

	r.request(request{typ: cmdRead, flags: cmdFlagDF, cookie: 1, off: 4000, length: 8000}, nil)
	h, got := r.chunk()
	if want := (chunk{chunkFlagDone, chunkOffsetData, 1, 8 + 8000}); h != want || be.Uint64(got) != 4000 || !bytes.Equal(got[8:], x.Bytes()[4000:12000]) {
		t.Errorf("read: %+v", h)
	}
	r.request(request{typ: cmdRead, cookie: 2}, nil)
	if h, _ := r.chunk(); h != (chunk{chunkFlagDone, chunkNone, 2, 0}) {
		t.Errorf("empty read: %+v", h)
	}
	r.request(request{typ: cmdRead, cookie: 3, off: 4 << 20, length: 1}, nil)
	h, got = r.chunk()
	if e, msg, err := parseErrorData(got); h.typ != chunkError || e != errnoInvalid || msg == "" || err != nil {
		t.Errorf("bad read: %+v % x", h, got)
	}
	for _, tc := range []struct {
		name  string
		flags uint16
		want  []block.Extent
	}{
		{"all", 0, []block.Extent{{Len: 4096, Hole: true}, {Len: 8192}, {Len: 1<<20 - 12288, Hole: true}}},
		{"one", cmdFlagReqOne, []block.Extent{{Len: 4096, Hole: true}}},
	} {
		r.request(request{typ: cmdBlockStatus, flags: tc.flags, cookie: 4, length: 4 << 20}, nil)
		h, got = r.chunk()
		extents, err := parseExtents(got, contextAllocationID)
		if h.typ != chunkBlockStatus || h.flags != chunkFlagDone || err != nil || len(extents) != len(tc.want) {
			t.Fatalf("%s: %+v %v %v", tc.name, h, extents, err)
		}
		for i := range extents {
			if extents[i] != tc.want[i] {
				t.Errorf("%s: %v, want %v", tc.name, extents, tc.want)
			}
		}
	}
	for _, q := range []request{{typ: cmdBlockStatus, cookie: 5}, {typ: cmdBlockStatus, cookie: 5, off: 4 << 20, length: 4096}} {
		r.request(q, nil)
		h, got = r.chunk()
		if e, _, _ := parseErrorData(got); h.typ != chunkError || e != errnoInvalid {
			t.Errorf("block status at %d+%d: %+v", q.off, q.length, h)
		}
	}
	r.alive()
}
