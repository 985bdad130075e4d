// Package nbd speaks the NBD protocol: the wire between a mirror and its
// replicas. The server serves any block.Device to any NBD client; the client
// is a block.Device over one TCP connection. The protocol's specification is
// doc/proto.md of the NetworkBlockDevice/nbd repository; its words are used
// here.
//
// It is not a place for policy: which exports there are, who may open them and
// what an error means for a replica is decided by the Backend and the mirror.
// There is no TLS yet; STARTTLS is refused.
//
// What is spoken: fixed newstyle negotiation with EXPORT_NAME, ABORT, LIST,
// INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT and SET_META_CONTEXT (for
// base:allocation); the commands READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES
// and BLOCK_STATUS with the flags FUA, NO_HOLE, DF and REQ_ONE. CAN_MULTI_CONN
// is not advertised, for an export is one session of one mirror.
//
// # Format
//
// All numbers are big-endian. Offsets and sizes are in bytes.
//
//	greeting     server: "NBDMAGIC" "IHAVEOPT" flags:16      client: flags:32
//	option       "IHAVEOPT" option:32 length:32 data
//	option reply 0x0003e889045565a9:64 option:32 type:32 length:32 data
//
//	INFO, GO              nameLength:32 name count:16 info:16 ...
//	*_META_CONTEXT        nameLength:32 name count:32 { length:32 query } ...
//	reply INFO export     0:16 size:64 transmissionFlags:16
//	reply INFO block size 3:16 minimum:32 preferred:32 maximum:32
//	reply META_CONTEXT    id:32 name
//	reply SERVER          nameLength:32 name
//
//	request 28 bytes
//	    0 magic 0x25609513:32 |  4 flags:16 | 6 type:16 | 8 cookie:64 | 16 offset:64 | 24 length:32 | payload of WRITE
//	simple reply 16 bytes
//	    0 magic 0x67446698:32 |  4 error:32 | 8 cookie:64 | payload of READ
//	structured reply chunk 20 bytes
//	    0 magic 0x668e33ef:32 |  4 flags:16 | 6 type:16 | 8 cookie:64 | 16 length:32 | data
//	    data OFFSET_DATA   offset:64 bytes
//	    data OFFSET_HOLE   offset:64 length:32
//	    data BLOCK_STATUS  context:32 { length:32 flags:32 } ...
//	    data ERROR         error:32 messageLength:16 message
//	    data ERROR_OFFSET  error:32 messageLength:16 message offset:64
//
// # Danger: what must be prevented
//
// A request that arrived in part must never reach the device: a write is
// submitted only after its whole payload has been read. A peer must not be able
// to make this process wait or grow without bound: requests in flight are
// limited by count and bytes for each connection, connections by count, and
// handshakes, half-sent requests and unread replies by time. Two peers must not
// block each other by both writing while neither reads: a Client's and a
// device's goroutines never block on the socket; what the socket does not take
// at once is finished by the connection's own writer goroutine, while its
// reader goes on reading. The memory of a request must not be used after it was
// answered: after a failure a Client answers only when its reader and its
// writer have left the connection.
//
// # Concurrency
//
// Each connection, on both sides, has one reader goroutine, which owns the input
// buffer, and one writer goroutine, which sleeps unless the socket was full. Once
// negotiated, a connection is read and written with system calls of its own (see
// ownSocket). A client's reader may lend the input to a loop (see looped), and
// waits meanwhile.
// Frames are sent by whoever holds the sender's writing flag (see sender). A
// server connection also has up to ServerOptions.Workers goroutines for
// requests that would hold up those behind them. Locks are leaves: sender.mu and
// conn.mu are never held together, and neither during I/O or a callback.
package nbd
