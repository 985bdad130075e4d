package nbd

import (
	"encoding/binary"
	"fmt"
)

var be = binary.BigEndian

// Sizes of the fixed headers, in bytes.
const (
	greetingBytes     = 18
	optionBytes       = 16
	optionReplyBytes  = 20
	requestBytes      = 28
	simpleBytes       = 16
	chunkBytes        = 20
	chunkOffsetBytes  = 8 // in front of the data of OFFSET_DATA
	maxHeadBytes      = chunkBytes + chunkOffsetBytes
	exportReplyZeroes = 124
)

// protocolError is what a peer did that the specification forbids. It ends the
// connection.
type protocolError string

// Error implements error.
func (e protocolError) Error() string { return "protocol error: " + string(e) }

func badf(format string, args ...any) error { return protocolError(fmt.Sprintf(format, args...)) }

// request is the header of a request.
type request struct {
	flags  uint16
	typ    uint16
	cookie uint64
	off    uint64
	length uint32
}

// put writes the header into b, which has requestBytes or more.
func (r request) put(b []byte) {
	be.PutUint32(b[0:], magicRequest)
	be.PutUint16(b[4:], r.flags)
	be.PutUint16(b[6:], r.typ)
	be.PutUint64(b[8:], r.cookie)
	be.PutUint64(b[16:], r.off)
	be.PutUint32(b[24:], r.length)
}

// parseRequest reads a header out of b, which has requestBytes or more.
func parseRequest(b []byte) (request, error) {
	if m := be.Uint32(b); m != magicRequest {
		return request{}, badf("request magic is %#08x", m)
	}
	return request{
		flags: be.Uint16(b[4:]), typ: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]),
		off: be.Uint64(b[16:]), length: be.Uint32(b[24:]),
	}, nil
}

// simple is a simple reply.
type simple struct {
	err    errno
	cookie uint64
}

func (r simple) put(b []byte) {
	be.PutUint32(b[0:], magicSimple)
	be.PutUint32(b[4:], uint32(r.err))
	be.PutUint64(b[8:], r.cookie)
}

// parseSimple reads what follows the magic, which the caller has checked.
func parseSimple(b []byte) simple {
	return simple{err: errno(be.Uint32(b[4:])), cookie: be.Uint64(b[8:])}
}

// chunk is the header of a structured reply chunk.
type chunk struct {
	flags  uint16
	typ    uint16
	cookie uint64
	length uint32
}

func (c chunk) put(b []byte) {
	be.PutUint32(b[0:], magicChunk)
	be.PutUint16(b[4:], c.flags)
	be.PutUint16(b[6:], c.typ)
	be.PutUint64(b[8:], c.cookie)
	be.PutUint32(b[16:], c.length)
}

// parseChunk reads what follows the magic, which the caller has checked.
func parseChunk(b []byte) chunk {
	return chunk{flags: be.Uint16(b[4:]), typ: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]), length: be.Uint32(b[16:])}
}

// appendErrorData makes the data of an ERROR chunk.
func appendErrorData(b []byte, e errno, message string) []byte {
	message = clip(message)
	b = be.AppendUint32(b, uint32(e))
	b = be.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

// parseErrorData reads the data of an ERROR or ERROR_OFFSET chunk, or of an
// error chunk of a later protocol, which begins in the same way.
func parseErrorData(b []byte) (errno, string, error) {
	if len(b) < 6 {
		return 0, "", badf("an error chunk of %d bytes", len(b))
	}
	e, n := errno(be.Uint32(b)), int(be.Uint16(b[4:]))
	if n > len(b)-6 {
		return 0, "", badf("an error message of %d bytes in a chunk of %d", n, len(b))
	}
	if e == 0 {
		return 0, "", badf("an error chunk without an error")
	}
	return e, string(b[6 : 6+n]), nil
}

// clip shortens a string to what the specification allows.
func clip(s string) string {
	if len(s) > maxStringBytes {
		return s[:maxStringBytes]
	}
	return s
}
