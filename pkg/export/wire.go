package export

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// The FUSE protocol as include/uapi/linux/fuse.h has it, as far as a file
// system of one regular file meets it. All integers have the host's byte order.
//
//	request: fuse_in_header (40 bytes), arguments, payload
//	  0 len u32 | 4 opcode u32 | 8 unique u64 | 16 nodeid u64 | 24 uid, gid, pid u32 | 36 padding
//	reply: fuse_out_header (16 bytes), arguments or payload
//	  0 len u32 | 4 error i32 (negative errno) | 8 unique u64, as in the request
var host = binary.NativeEndian

const (
	inHeaderBytes  = 40
	outHeaderBytes = 16

	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43

	// FATTR_SIZE: a SETATTR that sets the size.
	setattrSize = 1 << 3

	// FOPEN_*: reads and writes reach us as they are, and in parallel; no FLUSH
	// on close.
	openDirectIO       = 1 << 0
	openNoFlush        = 1 << 5
	openParallelWrites = 1 << 6

	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15
	initMaxPages  = 1 << 22
	initExt       = 1 << 30

	protoMajor = 7
	protoMinor = 34 // Linux 5.15; enough for all that is used
)

// maxPayloadBytes is the largest read or write that is negotiated; the kernel's
// own limit with FUSE_MAX_PAGES is 256 pages.
const maxPayloadBytes = 1 << 20

// attrValid is how long the kernel may trust what GETATTR said. It is long,
// because with a stale attribute any LOOP_GET_STATUS64 on the host would wait
// for this process; Resize refreshes it explicitly.
const attrValid = 365 * 24 * time.Hour

// argBytes is the least length of the arguments of the requests that are
// decoded further.
var argBytes = map[uint32]int{
	opRead: 40, opWrite: 40, opFsync: 16, opFallocate: 32, opSetattr: 88, opInit: 16,
}

// request is a decoded FUSE request.
type request struct {
	op      uint32
	unique  uint64
	off     int64  // READ, WRITE, FALLOCATE
	length  int64  // READ, WRITE, FALLOCATE
	mode    uint32 // FALLOCATE: FALLOC_FL_*; SETATTR: FATTR_*
	payload []byte // WRITE: within the input
}

// decode reads a request as read(2) on /dev/fuse returned it. The unique number
// is valid even with an error, if the input has a header at all.
func decode(in []byte) (request, error) {
	if len(in) < inHeaderBytes {
		return request{}, fmt.Errorf("FUSE request of %d bytes: %w", len(in), volume.ErrInvalid)
	}
	r := request{op: host.Uint32(in[4:]), unique: host.Uint64(in[8:])}
	if n := host.Uint32(in); int64(n) != int64(len(in)) {
		return r, fmt.Errorf("FUSE request of %d bytes says it has %d: %w", len(in), n, volume.ErrInvalid)
	}
	arg := in[inHeaderBytes:]
	var want int
	switch r.op { // not the map: this is the data path
	case opRead, opWrite:
		want = 40
	default:
		want = argBytes[r.op]
	}
	if len(arg) < want {
		return r, fmt.Errorf("FUSE operation %d with %d bytes of arguments, not %d: %w", r.op, len(arg), want, volume.ErrInvalid)
	}
	switch r.op {
	case opRead, opWrite:
		r.off, r.length = int64(host.Uint64(arg[8:])), int64(host.Uint32(arg[16:]))
		if r.length > maxPayloadBytes {
			return r, fmt.Errorf("FUSE operation %d of %d bytes: %w", r.op, r.length, volume.ErrInvalid)
		}
		if r.op == opWrite {
			r.payload = arg[40:]
			if int64(len(r.payload)) != r.length {
				return r, fmt.Errorf("FUSE write of %d bytes with a payload of %d: %w", r.length, len(r.payload), volume.ErrInvalid)
			}
		}
	case opFallocate:
		r.off, r.length, r.mode = int64(host.Uint64(arg[8:])), int64(host.Uint64(arg[16:])), host.Uint32(arg[24:])
	case opSetattr:
		r.mode = host.Uint32(arg)
	}
	if r.off < 0 || r.length < 0 {
		return r, fmt.Errorf("FUSE operation %d at %d+%d: %w", r.op, r.off, r.length, volume.ErrInvalid)
	}
	return r, nil
}

// putOutHeader writes the header of a reply with n bytes behind it.
func putOutHeader(out []byte, unique uint64, errno unix.Errno, n int) {
	host.PutUint32(out, uint32(outHeaderBytes+n))
	host.PutUint32(out[4:], uint32(-int32(errno)))
	host.PutUint64(out[8:], unique)
}

// attrOutBytes is the length of a fuse_attr_out.
const attrOutBytes = 104

// putAttrOut writes the attributes of our file, the root inode.
func putAttrOut(out []byte, size int64) {
	clear(out[:attrOutBytes])
	host.PutUint64(out, uint64(attrValid/time.Second))
	attr := out[16:]
	host.PutUint64(attr[0:], 1) // inode
	host.PutUint64(attr[8:], uint64(size))
	host.PutUint64(attr[16:], uint64(size/512))
	host.PutUint32(attr[60:], unix.S_IFREG|0o600)
	host.PutUint32(attr[64:], 1) // links
	host.PutUint32(attr[80:], sectorBytes)
}

// openOutBytes and statfsOutBytes are the lengths of fuse_open_out and
// fuse_statfs_out.
const (
	openOutBytes   = 16
	statfsOutBytes = 80
)

func putOpenOut(out []byte) {
	clear(out[:openOutBytes])
	host.PutUint32(out[8:], openDirectIO|openParallelWrites|openNoFlush)
}

func putStatfsOut(out []byte) {
	clear(out[:statfsOutBytes])
	host.PutUint32(out[40:], sectorBytes)
	host.PutUint32(out[44:], 255)
	host.PutUint32(out[48:], sectorBytes)
}

// hello is what the kernel's INIT request said.
type hello struct {
	unique       uint64
	major, minor uint32
	flags        uint64
}

// decodeInit reads the first request of a connection.
func decodeInit(in []byte) (hello, error) {
	r, err := decode(in)
	if err != nil {
		return hello{}, err
	}
	if r.op != opInit {
		return hello{}, fmt.Errorf("the kernel's first FUSE request is operation %d, not INIT: %w", r.op, volume.ErrUnsupported)
	}
	arg := in[inHeaderBytes:]
	h := hello{unique: r.unique, major: host.Uint32(arg), minor: host.Uint32(arg[4:]), flags: uint64(host.Uint32(arg[12:]))}
	if h.flags&initExt != 0 && len(arg) >= 20 {
		h.flags |= uint64(host.Uint32(arg[16:])) << 32
	}
	const needed = initAsyncDIO | initMaxPages | initBigWrites
	if h.major != protoMajor || h.minor < 31 || h.flags&needed != needed {
		return hello{}, fmt.Errorf("the kernel speaks FUSE %d.%d with features %#x; 7.31 with asynchronous direct I/O and large requests is needed: %w",
			h.major, h.minor, h.flags, volume.ErrUnsupported)
	}
	return h, nil
}

// initReply is the answer to INIT, whole.
func initReply(h hello, pageBytes int) []byte {
	out := make([]byte, outHeaderBytes+64)
	putOutHeader(out, h.unique, 0, 64)
	p := out[outHeaderBytes:]
	host.PutUint32(p[0:], protoMajor)
	host.PutUint32(p[4:], min(h.minor, protoMinor))
	host.PutUint32(p[8:], 0) // max_readahead: nothing is cached
	host.PutUint32(p[12:], uint32(h.flags&(initAsyncRead|initBigWrites|initAsyncDIO|initMaxPages)))
	host.PutUint16(p[16:], maxRequests) // max_background
	host.PutUint16(p[18:], maxRequests) // congestion_threshold
	host.PutUint32(p[20:], maxPayloadBytes)
	host.PutUint32(p[24:], 1) // time_gran
	host.PutUint16(p[28:], uint16(maxPayloadBytes/pageBytes))
	return out
}
