package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// fake is a server that negotiates as it should and then does what a test
// wants.
func fake(t testing.TB, size uint64, script func(r *raw)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := &raw{t, c}
		_ = c.SetDeadline(time.Now().Add(patience))
		if r.negotiate(size) {
			script(r)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

// negotiate is the server's part, for a client that asks for what ours may.
func (r *raw) negotiate(size uint64) bool {
	r.put(be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), 3))
	r.take(4)
	for {
		o, err := parseOption(r.take(optionBytes))
		if err != nil {
			return false
		}
		r.take(int(o.length))
		switch o.code {
		case optSetMeta:
			r.put(appendOptionReply(nil, o.code, repMetaContext, append(be.AppendUint32(nil, 7), contextAllocation...)))
		case optGo:
			flags := flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes
			r.put(appendOptionReply(nil, o.code, repInfo, exportInfo{size, flags}.append(nil)))
		}
		r.put(appendOptionReply(nil, o.code, repAck, nil))
		if o.code == optGo {
			return true
		}
	}
}

// next reads a request, and the payload of a write.
func (r *raw) next() request {
	q, err := parseRequest(r.take(requestBytes))
	if err != nil {
		r.t.Error(err)
	}
	if q.typ == cmdWrite {
		r.take(int(q.length))
	}
	return q
}

func (r *raw) answer(e errno, cookie uint64) {
	b := make([]byte, simpleBytes)
	simple{e, cookie}.put(b)
	r.put(b)
}

func (r *raw) sendChunk(h chunk, data []byte) {
	h.length = uint32(len(data))
	b := make([]byte, chunkBytes)
	h.put(b)
	r.put(append(b, data...))
}

// TestConnectionLoss: whatever ends the connection, every request in flight or
// waiting is answered with ErrUnavailable, then OnFail is called once.
func TestConnectionLoss(t *testing.T) {
	const requests = 200 // more than are on the wire at a time
	for _, tc := range []struct {
		name   string
		script func(r *raw)
	}{
		{"server hangs up at once", func(*raw) {}},
		{"server hangs up with requests in flight", func(r *raw) { r.next(); r.next() }},
		{"server resets", func(r *raw) { r.next(); _ = r.Conn.(*net.TCPConn).SetLinger(0) }},
		{"half a reply", func(r *raw) { r.next(); r.put([]byte{0x67, 0x44}) }},
		{"garbage", func(r *raw) { r.next(); r.put(make([]byte, 100)) }},
		{"an unknown cookie", func(r *raw) { r.next(); r.answer(0, 0xbad) }},
		{"a cookie of zero", func(r *raw) { r.next(); r.answer(0, 0) }},
		{"a second answer", func(r *raw) { q := r.next(); r.answer(0, q.cookie); r.answer(0, q.cookie) }},
		{"a structured reply unasked", func(r *raw) { q := r.next(); r.sendChunk(chunk{chunkFlagDone, chunkNone, q.cookie, 0}, nil) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			var fails atomic.Int32
			failed := make(chan error, 10)
			c := dial(t, DialOptions{Addr: fake(t, 4<<20, tc.script), OnFail: func(err error) { fails.Add(1); failed <- err }})
			a := newAnswers(requests)
			for range requests {
				a.submit(c, &block.IO{Op: block.OpWrite, Len: 4096, Data: make([]byte, 4096)})
			}
			bad := 0
			for _, err := range a.wait(t) {
				if errors.Is(err, volume.ErrUnavailable) {
					bad++
				} else if err != nil {
					t.Errorf("answered %v", err)
				}
			}
			if bad < requests-1 {
				t.Errorf("%d of %d requests failed", bad, requests)
			}
			select {
			case err := <-failed:
				if !errors.Is(err, volume.ErrUnavailable) {
					t.Errorf("OnFail(%v)", err)
				}
			case <-time.After(patience):
				t.Fatal("OnFail was not called")
			}
			if err := block.Flush(c); !errors.Is(err, volume.ErrUnavailable) {
				t.Errorf("a later request is answered %v", err)
			}
			_ = c.Close()
			if err := block.Flush(c); !errors.Is(err, volume.ErrClosed) {
				t.Errorf("a request after Close is answered %v", err)
			}
			if n := fails.Load(); n != 1 {
				t.Errorf("OnFail was called %d times", n)
			}
		})
	}
}

// TestBadStructuredReplies: what a server must not answer to a read of 8 KiB at
// 4096 (or, as told, to BLOCK_STATUS of the same).
func TestBadStructuredReplies(t *testing.T) {
	data := func(off uint64, n int) []byte { return append(be.AppendUint64(nil, off), make([]byte, n)...) }
	hole := func(off uint64, n uint32) []byte { return be.AppendUint32(be.AppendUint64(nil, off), n) }
	for _, tc := range []struct {
		name   string
		status bool
		chunks []chunk
		data   [][]byte
	}{
		{"too few bytes", false, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(4096, 4096)}},
		{"too many bytes", false, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(4096, 8193)}},
		{"bytes before the range", false, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(4095, 8192)}},
		{"bytes at a huge offset", false, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(1<<64-1, 512)}},
		{"the same bytes twice", false, []chunk{{typ: chunkOffsetData}, {typ: chunkOffsetData, flags: 1}}, [][]byte{data(4096, 8192), data(4096, 8192)}},
		{"no bytes", false, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(4096, 0)}},
		{"nothing at all", false, []chunk{{typ: chunkNone, flags: 1}}, [][]byte{nil}},
		{"nothing, without an end", false, []chunk{{typ: chunkNone}}, [][]byte{nil}},
		{"nothing with something", false, []chunk{{typ: chunkNone, flags: 1}}, [][]byte{{1}}},
		{"a hole too large", false, []chunk{{typ: chunkOffsetHole, flags: 1}}, [][]byte{hole(4096, 1<<31)}},
		{"a hole of a wrong size", false, []chunk{{typ: chunkOffsetHole, flags: 1}}, [][]byte{{1, 2, 3}}},
		{"an unknown chunk", false, []chunk{{typ: 99, flags: 1}}, [][]byte{nil}},
		{"an error that is none", false, []chunk{{typ: chunkError, flags: 1}}, [][]byte{{0, 0, 0, 0, 0, 0}}},
		{"a truncated error", false, []chunk{{typ: chunkError, flags: 1}}, [][]byte{{0, 0, 0, 5}}},
		{"an error with too long a message", false, []chunk{{typ: chunkError, flags: 1}}, [][]byte{{0, 0, 0, 5, 0xff, 0xff}}},
		{"a huge error", false, []chunk{{typ: chunkError, flags: 1}}, [][]byte{make([]byte, maxOptionReply+1)}},
		{"a status for a read", false, []chunk{{typ: chunkBlockStatus, flags: 1}}, [][]byte{make([]byte, 12)}},
		{"data for a status", true, []chunk{{typ: chunkOffsetData, flags: 1}}, [][]byte{data(4096, 8192)}},
		{"a status of another context", true, []chunk{{typ: chunkBlockStatus, flags: 1}}, [][]byte{{0, 0, 0, 9, 0, 0, 16, 0, 0, 0, 0, 0}}},
		{"an empty extent", true, []chunk{{typ: chunkBlockStatus, flags: 1}}, [][]byte{{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0}}},
		{"half an extent", true, []chunk{{typ: chunkBlockStatus, flags: 1}}, [][]byte{make([]byte, 13)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			addr := fake(t, 4<<20, func(r *raw) {
				q := r.next()
				for i, h := range tc.chunks {
					h.cookie = q.cookie
					r.sendChunk(h, tc.data[i])
				}
				_, _ = r.Read(make([]byte, 1)) // until the client hangs up
			})
			c := dial(t, DialOptions{Addr: addr, BlockStatus: true})
			var err error
			if tc.status {
				_, err = c.BlockStatus(4096, 8192)
			} else {
				err = block.ReadAt(c, make([]byte, 8192), 4096)
			}
			if !errors.Is(err, volume.ErrUnavailable) {
				t.Errorf("answered %v", err)
			}
		})
	}
}

// TestBadNegotiations: servers that Dial must not accept.
func TestBadNegotiations(t *testing.T) {
	greet := func(flags uint16) []byte {
		return be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), flags)
	}
	reply := func(b []byte, code, typ uint32, data []byte) []byte {
		return appendOptionReply(bytes.Clone(b), code, typ, data)
	}
	structured := reply(greet(3), optStructuredReply, repAck, nil)
	meta := reply(reply(structured, optSetMeta, repMetaContext, append(be.AppendUint32(nil, 7), contextAllocation...)), optSetMeta, repAck, nil)
	info := exportInfo{4 << 20, flagHasFlags}.append(nil)
	for _, tc := range []struct {
		name string
		send []byte
		want error
	}{
		{"hangs up", nil, volume.ErrUnavailable},
		{"another protocol", []byte("SSH-2.0-OpenSSH_9.2p1 Debian\r\n"), volume.ErrUnavailable},
		{"oldstyle", be.AppendUint64(be.AppendUint64(nil, magicServer), 0x00420281861253), volume.ErrUnavailable},
		{"without fixed newstyle", greet(0), volume.ErrUnsupported},
		{"hangs up after the greeting", greet(3), volume.ErrUnavailable},
		{"without structured replies", reply(greet(3), optStructuredReply, repErrUnsupported, nil), volume.ErrUnsupported},
		{"needs TLS", reply(greet(3), optStructuredReply, repErrTLSRequired, nil), volume.ErrUnsupported},
		{"garbage for a reply", append(greet(3), make([]byte, 20)...), volume.ErrUnavailable},
		{"a huge reply", append(greet(3), be.AppendUint32(reply(nil, optStructuredReply, repAck, nil)[:16], 1<<31)...), volume.ErrUnavailable},
		{"half a reply", append(greet(3), be.AppendUint32(reply(nil, optStructuredReply, repAck, nil)[:16], 100)...), volume.ErrUnavailable},
		{"a reply to another option", reply(greet(3), optList, repAck, nil), volume.ErrUnavailable},
		{"a reply nobody asked for", reply(greet(3), optStructuredReply, repServer, nil), volume.ErrUnavailable},
		{"replies without end", append(bytes.Clone(meta), bytes.Repeat(reply(nil, optGo, repInfo, info), maxOptions+1)...), volume.ErrUnavailable},
		{"no context", reply(structured, optSetMeta, repAck, nil), volume.ErrUnsupported},
		{"another context", reply(structured, optSetMeta, repMetaContext, []byte{0, 0, 0, 1, 'x'}), volume.ErrUnavailable},
		{"no information", reply(meta, optGo, repAck, nil), volume.ErrUnavailable},
		{"short information", reply(meta, optGo, repInfo, []byte{0}), volume.ErrUnavailable},
		{"malformed information", reply(meta, optGo, repInfo, []byte{0, 0, 1}), volume.ErrUnavailable},
		{"malformed block size", reply(meta, optGo, repInfo, []byte{0, 3, 1}), volume.ErrUnavailable},
		{"something else for information", reply(meta, optGo, repServer, nil), volume.ErrUnavailable},
		{"a size that is negative", reply(reply(meta, optGo, repInfo, exportInfo{1 << 63, flagHasFlags}.append(nil)), optGo, repAck, nil), volume.ErrUnavailable},
		{"blocks of 512 only", reply(reply(reply(meta, optGo, repInfo, info), optGo, repInfo, blockSizes{512, 4096, 1 << 25}.append(nil)), optGo, repAck, nil), volume.ErrUnsupported},
		{"small payloads only", reply(reply(reply(meta, optGo, repInfo, info), optGo, repInfo, blockSizes{1, 4096, 1 << 16}.append(nil)), optGo, repAck, nil), volume.ErrUnsupported},
		{"the export is away", reply(meta, optGo, repErrShutdown, []byte("come back later")), volume.ErrUnavailable},
		{"a platform error without text", reply(meta, optGo, repErrPlatform, nil), volume.ErrUnsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var running sync.WaitGroup
			defer running.Wait()
			defer l.Close()
			running.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write(tc.send)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			c, err := Dial(ctx, DialOptions{Addr: l.Addr().String(), Name: "x", BlockStatus: true, Logger: newTestLogger(t)})
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if err == nil {
				_ = c.Close()
			}
		})
	}
}

// TestStructuredReadInPieces: chunks in any order, holes, and an error in the
// midst.
func TestStructuredReadInPieces(t *testing.T) {
	noneLeft(t)
	want := append(make([]byte, 4096), fill(make([]byte, 4096), 5)...)
	addr := fake(t, 4<<20, func(r *raw) {
		q := r.next()
		r.sendChunk(chunk{typ: chunkOffsetData, cookie: q.cookie}, append(be.AppendUint64(nil, 8192), want[4096:]...))
		r.sendChunk(chunk{typ: chunkOffsetHole, cookie: q.cookie, flags: chunkFlagDone}, be.AppendUint32(be.AppendUint64(nil, 4096), 4096))
		q = r.next()
		r.sendChunk(chunk{typ: chunkErrorOffset, cookie: q.cookie}, be.AppendUint64(appendErrorData(nil, errnoNoSpace, "it is full"), 4096))
		r.sendChunk(chunk{typ: chunkNone, cookie: q.cookie, flags: chunkFlagDone}, nil)
		r.answer(0, r.next().cookie)
		r.next()
	})
	c := dial(t, DialOptions{Addr: addr, BlockStatus: true})
	got := fill(make([]byte, 8192), 9)
	if err := block.ReadAt(c, got, 4096); err != nil || string(got) != string(want) {
		t.Errorf("read: %v, equal %t", err, string(got) == string(want))
	}
	if err := block.ReadAt(c, got, 4096); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("read: %v", err)
	}
	if err := block.Flush(c); err != nil {
		t.Errorf("flush: %v", err)
	}
}

// TestServerThatTakesNothing: Submit does not block, and the write timeout ends
// the connection.
func TestServerThatTakesNothing(t *testing.T) {
	noneLeft(t)
	hold := make(chan struct{})
	addr := fake(t, 1<<30, func(*raw) { <-hold })
	t.Cleanup(func() { close(hold) })
	c := dial(t, DialOptions{Addr: addr, WriteTimeout: 100 * time.Millisecond, MaxInflight: 64})
	a := newAnswers(100)
	data := make([]byte, block.MaxIOBytes)
	for range 100 {
		a.submit(c, &block.IO{Op: block.OpWrite, Len: block.MaxIOBytes, Data: data})
	}
	wantAll(t, a.wait(t), volume.ErrUnavailable)
}

// TestRepliesMadeUp: a server that answers what it has not been sent does not
// confuse the client's queues.
func TestRepliesMadeUp(t *testing.T) {
	noneLeft(t)
	const requests = 4 * maxVector // the last can't be in the batch that is being written
	submitted, answered := make(chan struct{}), make(chan struct{})
	addr := fake(t, 1<<30, func(r *raw) {
		<-submitted
		r.answer(0, 1<<32|requests)
		<-answered
	})
	c := dial(t, DialOptions{Addr: addr, MaxInflight: requests})
	a := newAnswers(requests)
	data := make([]byte, block.MaxIOBytes)
	for range requests {
		a.submit(c, &block.IO{Op: block.OpWrite, Len: block.MaxIOBytes, Data: data})
	}
	close(submitted)
	defer close(answered)
	unavailable := 0
	for _, err := range a.wait(t) {
		if errors.Is(err, volume.ErrUnavailable) {
			unavailable++
		}
	}
	if unavailable != requests-1 {
		t.Errorf("%d of %d requests were answered with ErrUnavailable", unavailable, requests)
	}
}

func TestCloseAnswersEverything(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
	x.Hold(func(*block.IO) bool { return true })
	s := one(t, x)
	c := dial(t, DialOptions{Addr: s.addr, MaxInflight: 8, OnFail: func(err error) { t.Errorf("OnFail(%v)", err) }})
	a := newAnswers(20)
	for range 20 {
		a.submit(c, &block.IO{Op: block.OpRead, Len: 4096, Data: make([]byte, 4096)})
	}
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() { _ = c.Close() })
	}
	closers.Wait()
	wantAll(t, a.wait(t), volume.ErrClosed)
}

func TestGrewTo(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	c := dial(t, DialOptions{Addr: one(t, x).addr})
	p := make([]byte, 4096)
	if err := block.WriteAt(c, p, 4<<20); !errors.Is(err, volume.ErrOutOfRange) {
		t.Fatalf("before: %v", err)
	}
	x.Grow(8 << 20)
	c.GrewTo(8 << 20)
	if err := block.WriteAt(c, p, 8<<20-4096); err != nil {
		t.Fatalf("after: %v", err)
	}
	c.GrewTo(1 << 20)
	if c.Size() != 8<<20 {
		t.Errorf("the client shrank to %d", c.Size())
	}
}

// TestHugeRanges: ranges that don't fit into 32 bits are split, and answered
// once, with the first error.
func TestHugeRanges(t *testing.T) {
	noneLeft(t)
	const size = 10<<30 + 4096
	fail := atomic.Bool{}
	var mu sync.Mutex
	var got []request
	addr := fake(t, size, func(r *raw) {
		for {
			b := make([]byte, requestBytes)
			if n, err := r.Read(b); err != nil || n != requestBytes {
				return
			}
			q, err := parseRequest(b)
			if err != nil || q.typ == cmdDisconnect {
				return
			}
			mu.Lock()
			got = append(got, q)
			mu.Unlock()
			e := errno(0)
			if fail.Load() && q.off >= 4<<30 {
				e = errnoNoSpace
			}
			r.answer(e, q.cookie)
		}
	})
	c := dial(t, DialOptions{Addr: addr, MaxInflight: 1})
	if err := block.Do(c, &block.IO{Op: block.OpTrim, Off: 4096, Len: size - 4096, FUA: true}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	at := uint64(4096)
	for _, q := range got {
		if q.off != at || q.typ != cmdTrim || q.flags != cmdFlagFUA || q.length > maxRangeBytes {
			t.Errorf("request %+v, expected offset %d", q, at)
		}
		at += uint64(q.length)
	}
	mu.Unlock()
	if at != size {
		t.Errorf("the requests end at %d", at)
	}
	fail.Store(true)
	if err := block.Do(c, &block.IO{Op: block.OpWriteZeroes, Len: size}); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("answered %v", err)
	}
}

func TestReadOnlyClient(t *testing.T) {
	noneLeft(t)
	c := dial(t, DialOptions{Addr: one(t, &export{Memory: blocktest.NewMemory(4 << 20), readOnly: true}).addr})
	p := make([]byte, 4096)
	if err := block.ReadAt(c, p, 0); err != nil || !c.ReadOnly() {
		t.Errorf("read: %v, read-only %t", err, c.ReadOnly())
	}
	if err := block.WriteAt(c, p, 0); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("write: %v", err)
	}
}

func TestBlockStatus(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20)}
	if err := block.WriteAt(x, fill(make([]byte, 4096), 1), 8192); err != nil {
		t.Fatal(err)
	}
	s := one(t, x)
	c := dial(t, DialOptions{Addr: s.addr, BlockStatus: true})
	for _, tc := range []struct {
		name   string
		off, n int64
		want   []block.Extent
	}{
		{"all", 0, 4 << 20, []block.Extent{{Len: 8192, Hole: true}, {Len: 4096}, {Len: 4<<20 - 12288, Hole: true}}},
		{"a part", 9000, 4096, []block.Extent{{Len: 3288}, {Len: 808, Hole: true}}},
		{"nothing", 4096, 0, nil},
	} {
		got, err := c.BlockStatus(tc.off, tc.n)
		if err != nil || len(got) != len(tc.want) {
			t.Fatalf("%s: %v, %v", tc.name, got, err)
		}
		for i := range got {
			if got[i] != tc.want[i] {
				t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
			}
		}
	}
	if _, err := c.BlockStatus(4<<20-1, 2); !errors.Is(err, volume.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if _, err := dial(t, DialOptions{Addr: s.addr}).BlockStatus(0, 1); !errors.Is(err, volume.ErrUnsupported) {
		t.Errorf("not negotiated: %v", err)
	}
}

// TestNothingIsAllocated: the data path leaves the garbage collector alone, on
// both sides together.
func TestNothingIsAllocated(t *testing.T) {
	if raceEnabled {
		t.Skip("needs a build without -race: the race detector allocates")
	}
	c := dial(t, DialOptions{Addr: one(t, &memory{data: make([]byte, 4<<20)}).addr})
	for _, op := range []block.Op{block.OpWrite, block.OpRead} {
		load(t, c, op, 4096, 16, 1000)
		const n = 5000
		perRun := testing.AllocsPerRun(1, func() { load(t, c, op, 4096, 16, n) })
		// load itself needs a few for each of its 16 requests.
		if perRun > n/10 {
			t.Errorf("%d requests of 4 KiB (%s) made %.0f allocations", n, op, perRun)
		}
	}
}

// TestOverAPipe: a connection without a file descriptor, as TLS will be, works
// through the writer goroutine alone.
func TestOverAPipe(t *testing.T) {
	noneLeft(t)
	blocktest.Run(t, func(t *testing.T) block.Device {
		x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
		s := NewServer(ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}})
		here, there := net.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		var serving sync.WaitGroup
		serving.Go(func() { s.serveConn(ctx, there) })
		t.Cleanup(func() { cancel(); serving.Wait() })
		opts := DialOptions{Name: "x", MaxInflight: 16, WriteTimeout: patience, Logger: newTestLogger(t)}
		c, err := connect(ctx, here, opts)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}, blocktest.Options{Ops: 200})
}
