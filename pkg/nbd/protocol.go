package nbd

import "github.com/holdfast-csi/holdfast/pkg/block"

// Magic numbers.
const (
	magicServer      uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply uint64 = 0x0003e889045565a9
	magicRequest     uint32 = 0x25609513
	magicSimple      uint32 = 0x67446698
	magicChunk       uint32 = 0x668e33ef
)

// Handshake flags; the client's have the same bits.
const (
	flagFixedNewstyle uint16 = 1 << 0
	flagNoZeroes      uint16 = 1 << 1
)

// Options.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMeta        uint32 = 9
	optSetMeta         uint32 = 10
)

// Option reply types.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4

	repErrorBit        uint32 = 1 << 31
	repErrUnsupported  uint32 = repErrorBit | 1
	repErrPolicy       uint32 = repErrorBit | 2
	repErrInvalid      uint32 = repErrorBit | 3
	repErrPlatform     uint32 = repErrorBit | 4
	repErrTLSRequired  uint32 = repErrorBit | 5
	repErrUnknown      uint32 = repErrorBit | 6
	repErrShutdown     uint32 = repErrorBit | 7
	repErrBlockSizeReq uint32 = repErrorBit | 8
	repErrTooBig       uint32 = repErrorBit | 9
)

// Information types of INFO and GO.
const (
	infoExport    uint16 = 0
	infoBlockSize uint16 = 3
)

// Transmission flags.
const (
	flagHasFlags    uint16 = 1 << 0
	flagReadOnly    uint16 = 1 << 1
	flagFlush       uint16 = 1 << 2
	flagFUA         uint16 = 1 << 3
	flagTrim        uint16 = 1 << 5
	flagWriteZeroes uint16 = 1 << 6
	flagDF          uint16 = 1 << 7
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisconnect  uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Command flags.
const (
	cmdFlagFUA    uint16 = 1 << 0
	cmdFlagNoHole uint16 = 1 << 1
	cmdFlagDF     uint16 = 1 << 2
	cmdFlagReqOne uint16 = 1 << 3
)

// Structured reply chunks.
const (
	chunkFlagDone uint16 = 1 << 0

	chunkNone        uint16 = 0
	chunkOffsetData  uint16 = 1
	chunkOffsetHole  uint16 = 2
	chunkBlockStatus uint16 = 5
	chunkErrorBit    uint16 = 1 << 15
	chunkError       uint16 = chunkErrorBit | 1
	chunkErrorOffset uint16 = chunkErrorBit | 2
)

// base:allocation, the one metadata context of the specification.
const (
	contextAllocation   = "base:allocation"
	contextBase         = "base:"
	contextAllocationID = 1 // ours; any number but one per context

	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

// Limits. The specification's are maxStringBytes and defaultMaxPayload.
const (
	maxStringBytes    = 4096             // of a name or a message
	maxOptionBytes    = 64 << 10         // of an option that is read; a longer one ends the connection
	maxOptionReply    = 64 << 10         // of an option reply that the client reads
	maxOptions        = 128              // of one negotiation
	maxPayload        = block.MaxIOBytes // of READ and WRITE, as advertised
	preferredBytes    = block.Align      // as advertised
	defaultMaxPayload = 32 << 20         // what a client may assume that asked for nothing; also the longest write that is skipped
	maxStatusRange    = 256 << 20        // that one BLOCK_STATUS reply covers
	maxStatusChunk    = 2 << 20          // of a BLOCK_STATUS chunk that the client reads
	maxRangeBytes     = 1 << 31          // that the client trims or zeroes in one request; lengths are 32 bits
)
