package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// FuzzHeaders: every header that is parsed is written back as it was.
func FuzzHeaders(f *testing.F) {
	b := make([]byte, 2*requestBytes)
	request{cmdFlagFUA, cmdWrite, 7, 4096, 512}.put(b)
	f.Add(bytes.Clone(b))
	simple{errnoIO, 9}.put(b)
	f.Add(bytes.Clone(b))
	chunk{chunkFlagDone, chunkError, 9, 3}.put(b)
	f.Add(bytes.Clone(b))
	f.Add(append(appendOption(nil, optGo, nil), b...))
	f.Add(append(appendOptionReply(nil, optGo, repAck, nil), b...))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < requestBytes {
			return
		}
		back := make([]byte, requestBytes)
		check := func(n int) {
			if !bytes.Equal(back[:n], in[:n]) {
				t.Errorf("% x comes back as % x", in[:n], back[:n])
			}
		}
		if r, err := parseRequest(in); err == nil {
			r.put(back)
			check(requestBytes)
		}
		switch be.Uint32(in) {
		case magicSimple:
			parseSimple(in).put(back)
			check(simpleBytes)
		case magicChunk:
			parseChunk(in).put(back)
			check(chunkBytes)
		}
		if o, err := parseOption(in); err == nil {
			copy(back, appendOption(nil, o.code, nil)[:12])
			check(12)
		}
		if r, err := parseOptionReply(in); err == nil {
			copy(back, appendOptionReply(nil, r.code, r.typ, nil)[:16])
			check(16)
		}
	})
}

// FuzzOptionData: what is parsed out of an option is written back as it was.
func FuzzOptionData(f *testing.F) {
	f.Add(infoRequest{"name", []uint16{1, 2, 3}}.append(nil))
	f.Add(metaRequest{"name", []string{contextAllocation, "qemu:"}}.append(nil))
	f.Add(exportInfo{1 << 40, 0xffff}.append(nil))
	f.Add(blockSizes{1, 2, 3}.append(nil))
	f.Add(appendErrorData(nil, errnoNoSpace, "message"))
	extents, _ := appendExtents(nil, []block.Extent{{Len: 4096}, {Len: 8192, Hole: true}}, 1<<20, 9)
	f.Add(extents)
	f.Fuzz(func(t *testing.T, in []byte) {
		same := func(out []byte) {
			if !bytes.Equal(in, out) {
				t.Errorf("% x comes back as % x", in, out)
			}
		}
		if r, err := parseInfoRequest(in); err == nil {
			same(r.append(nil))
		}
		if r, err := parseMetaRequest(in); err == nil {
			same(r.append(nil))
		}
		var e exportInfo
		var s blockSizes
		if err := parseInfo(in, &e, &s); err == nil {
			switch be.Uint16(in) {
			case infoExport:
				same(e.append(nil))
			case infoBlockSize:
				same(s.append(nil))
			}
		}
		if e, msg, err := parseErrorData(in); err == nil && len(msg) <= maxStringBytes {
			if out := appendErrorData(nil, e, msg); !bytes.HasPrefix(in, out) {
				t.Errorf("% x comes back as % x", in, out)
			}
		}
		if extents, err := parseExtents(in, contextAllocationID); err == nil {
			var want, got int64
			for _, x := range extents {
				want += x.Len
			}
			if want <= 1<<32-1 {
				if _, got = appendExtents(nil, extents, want, len(extents)); got != want {
					t.Errorf("extents of %d bytes come back as %d", want, got)
				}
			}
		}
	})
}

// watched is a device that checks what it is asked for.
type watched struct {
	*export
	t *testing.T
}

func (w *watched) Submit(io *block.IO) {
	if err := block.CheckRange(io, w.Size()); err != nil {
		w.t.Errorf("the device was given %s at %d+%d: %v", io.Op, io.Off, io.Len, err)
	}
	w.export.Submit(io)
}

// exchange feeds in to run, which has one end of a pipe, drops what comes back,
// and waits for run.
func exchange(in []byte, run func(net.Conn)) {
	here, there := net.Pipe()
	var running sync.WaitGroup
	running.Go(func() { run(there); _ = there.Close() })
	running.Go(func() { _, _ = io.Copy(io.Discard, here) })
	_ = here.SetWriteDeadline(time.Now().Add(patience))
	_, _ = here.Write(in)
	_ = here.Close()
	running.Wait()
}

// FuzzServer: whatever a client sends, the server ends with it, gives the
// device nothing that is out of range, and leaves no goroutine.
func FuzzServer(f *testing.F) {
	hello := be.AppendUint32(nil, 3)
	open := append(bytes.Clone(hello), appendOption(nil, optGo, infoRequest{name: "x"}.append(nil))...)
	status := append(append(append(bytes.Clone(hello), askStructured...), askAllocation...), open[4:]...)
	req := func(prefix []byte, q request, payload int) []byte {
		b := make([]byte, requestBytes+payload)
		q.put(b)
		return append(bytes.Clone(prefix), b...)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(hello)
	f.Add(open)
	f.Add(append(bytes.Clone(hello), appendOption(nil, optExportName, []byte("x"))...))
	f.Add(append(bytes.Clone(hello), appendOption(nil, optList, nil)...))
	f.Add(req(open, request{typ: cmdWrite, off: 4096, length: 512}, 512))
	f.Add(req(open, request{typ: cmdWrite, off: 4096, length: 512}, 100))
	f.Add(req(open, request{typ: cmdWrite, off: 1 << 62, length: maxPayload + 1}, 100))
	f.Add(req(req(open, request{typ: cmdRead, length: 4096}, 0), request{typ: cmdDisconnect}, 0))
	f.Add(req(status, request{typ: cmdRead, length: 4096, flags: cmdFlagDF}, 0))
	f.Add(req(status, request{typ: cmdBlockStatus, length: 1 << 20, flags: cmdFlagReqOne}, 0))
	f.Add(req(req(open, request{typ: cmdTrim, length: 1 << 20, flags: cmdFlagFUA}, 0), request{typ: cmdFlush}, 0))
	f.Add(req(open, request{typ: cmdWriteZeroes, length: 1 << 31, flags: cmdFlagNoHole}, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		x := &watched{&export{Memory: blocktest.NewMemory(1 << 20), lastUse: true}, t}
		s := NewServer(ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}})
		exchange(in, func(c net.Conn) { s.serveConn(context.Background(), c) })
		if x.closed.Load() > 1 {
			t.Errorf("the export was closed %d times", x.closed.Load())
		}
	})
}

// FuzzClient: whatever a server sends, the client ends with it and answers
// every request once.
func FuzzClient(f *testing.F) {
	hello := be.AppendUint16(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), 3)
	hello = appendOptionReply(hello, optStructuredReply, repAck, nil)
	hello = appendOptionReply(hello, optSetMeta, repMetaContext, append(be.AppendUint32(nil, 7), contextAllocation...))
	hello = appendOptionReply(hello, optSetMeta, repAck, nil)
	hello = appendOptionReply(hello, optGo, repInfo, exportInfo{1 << 20, 0x6d}.append(nil))
	hello = appendOptionReply(hello, optGo, repAck, nil)
	reply := func(h chunk, data []byte) []byte {
		b := make([]byte, chunkBytes)
		h.length = uint32(len(data))
		h.put(b)
		return append(b, data...)
	}
	read, write, flush := uint64(1<<32|1), uint64(1<<32|2), uint64(1<<32|3)
	ok := make([]byte, simpleBytes)
	simple{0, write}.put(ok)
	bad := make([]byte, simpleBytes)
	simple{errnoNoSpace, flush}.put(bad)
	f.Add(hello[:30])
	f.Add(hello)
	f.Add(append(append(bytes.Clone(hello), ok...), bad...))
	f.Add(append(bytes.Clone(hello), reply(chunk{1, chunkOffsetData, read, 0}, make([]byte, 8+4096))...))
	f.Add(append(bytes.Clone(hello), reply(chunk{1, chunkOffsetHole, read, 0}, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0})...))
	f.Add(append(bytes.Clone(hello), reply(chunk{1, chunkError, read, 0}, appendErrorData(nil, errnoIO, "no"))...))
	f.Add(append(append(bytes.Clone(hello), ok...), ok...))
	f.Fuzz(func(t *testing.T, in []byte) {
		exchange(in, func(nc net.Conn) {
			opts := DialOptions{Name: "x", MaxInflight: 8, WriteTimeout: patience, BlockStatus: true}
			opts.Logger = newTestLogger(t)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			c, err := connect(ctx, nc, opts)
			if err != nil {
				return
			}
			a := newAnswers(10)
			p := make([]byte, 4096)
			if c.Size() >= int64(len(p)) {
				a.submit(c, &block.IO{Op: block.OpRead, Len: 4096, Data: p})
				a.submit(c, &block.IO{Op: block.OpWrite, Len: 4096, Data: make([]byte, 4096)})
			}
			a.submit(c, &block.IO{Op: block.OpFlush})
			a.wait(t)
			_ = c.Close()
			if len(a.ch) != 0 {
				t.Error("a request was answered twice")
			}
		})
	})
}
