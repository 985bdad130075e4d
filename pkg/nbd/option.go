package nbd

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// option is a header of option haggling.
type option struct {
	code   uint32
	length uint32
}

func parseOption(b []byte) (option, error) {
	if m := be.Uint64(b); m != magicOption {
		return option{}, badf("option magic is %#016x", m)
	}
	return option{code: be.Uint32(b[8:]), length: be.Uint32(b[12:])}, nil
}

func appendOption(b []byte, code uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, code)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// optionReply is the header of a reply to an option.
type optionReply struct {
	code   uint32
	typ    uint32
	length uint32
}

func parseOptionReply(b []byte) (optionReply, error) {
	if m := be.Uint64(b); m != magicOptionReply {
		return optionReply{}, badf("option reply magic is %#016x", m)
	}
	r := optionReply{code: be.Uint32(b[8:]), typ: be.Uint32(b[12:]), length: be.Uint32(b[16:])}
	if r.length > maxOptionReply {
		return optionReply{}, badf("an option reply of %d bytes", r.length)
	}
	return r, nil
}

func appendOptionReply(b []byte, code, typ uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptionReply)
	b = be.AppendUint32(b, code)
	b = be.AppendUint32(b, typ)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// errShort: an option's data ends too early or too late.
var errShort = fmt.Errorf("the option's lengths contradict each other: %w", volume.ErrInvalid)

// cutString takes a string with a 32-bit length off the front of b.
func cutString(b []byte) (string, []byte, error) {
	if len(b) < 4 {
		return "", nil, errShort
	}
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return "", nil, errShort
	}
	if n > maxStringBytes {
		return "", nil, fmt.Errorf("a string of %d bytes, more than %d: %w", n, maxStringBytes, volume.ErrInvalid)
	}
	return string(b[:n]), b[n:], nil
}

func appendString(b []byte, s string) []byte {
	b = be.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	name  string
	infos []uint16
}

func parseInfoRequest(b []byte) (infoRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return infoRequest{}, err
	}
	if len(b) < 2 || len(b) != 2+2*int(be.Uint16(b)) {
		return infoRequest{}, errShort
	}
	r := infoRequest{name: name}
	for b = b[2:]; len(b) > 0; b = b[2:] {
		r.infos = append(r.infos, be.Uint16(b))
	}
	return r, nil
}

func (r infoRequest) append(b []byte) []byte {
	b = appendString(b, r.name)
	b = be.AppendUint16(b, uint16(len(r.infos)))
	for _, i := range r.infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func parseMetaRequest(b []byte) (metaRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return metaRequest{}, err
	}
	if len(b) < 4 {
		return metaRequest{}, errShort
	}
	n := be.Uint32(b)
	b = b[4:]
	r := metaRequest{name: name}
	for range n { // each takes 4 bytes or fails, so the option's length bounds it
		var q string
		if q, b, err = cutString(b); err != nil {
			return metaRequest{}, err
		}
		r.queries = append(r.queries, q)
	}
	if len(b) != 0 {
		return metaRequest{}, errShort
	}
	return r, nil
}

func (r metaRequest) append(b []byte) []byte {
	b = appendString(b, r.name)
	b = be.AppendUint32(b, uint32(len(r.queries)))
	for _, q := range r.queries {
		b = appendString(b, q)
	}
	return b
}

// blockSizes is the data of the block size information, in bytes.
type blockSizes struct {
	minimum, preferred, maximum uint32
}

func (s blockSizes) append(b []byte) []byte {
	b = be.AppendUint16(b, infoBlockSize)
	b = be.AppendUint32(b, s.minimum)
	b = be.AppendUint32(b, s.preferred)
	return be.AppendUint32(b, s.maximum)
}

// exportInfo is the data of the export information.
type exportInfo struct {
	size  uint64
	flags uint16
}

func (e exportInfo) append(b []byte) []byte {
	b = be.AppendUint16(b, infoExport)
	b = be.AppendUint64(b, e.size)
	return be.AppendUint16(b, e.flags)
}

// parseInfo reads an INFO reply into whichever of the two it is about; other
// kinds are left alone.
func parseInfo(b []byte, e *exportInfo, s *blockSizes) error {
	if len(b) < 2 {
		return badf("an information of %d bytes", len(b))
	}
	switch be.Uint16(b) {
	case infoExport:
		if len(b) != 12 {
			return badf("an export information of %d bytes", len(b))
		}
		*e = exportInfo{size: be.Uint64(b[2:]), flags: be.Uint16(b[10:])}
	case infoBlockSize:
		if len(b) != 14 {
			return badf("a block size information of %d bytes", len(b))
		}
		*s = blockSizes{minimum: be.Uint32(b[2:]), preferred: be.Uint32(b[6:]), maximum: be.Uint32(b[10:])}
	}
	return nil
}
