package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// errLeft: the client ended the connection as the specification lets it.
var errLeft = errors.New("the client left")

// negotiation is the server's side of the handshake of one connection. One
// goroutine runs it.
type negotiation struct {
	server *Server
	sock   *socket
	in     inbuf

	noZeroes   bool
	fixed      bool
	structured bool
	// metaName is the export for which base:allocation was chosen; metaSet says
	// that it was.
	metaName string
	metaSet  bool
	// export is the one that this connection has opened, if any, and name its
	// name: INFO and the GO that follows it use the same.
	export Export
	name   string
}

// run negotiates until an export is chosen. On an error the caller closes the
// export.
func (n *negotiation) run(ctx context.Context) error {
	timeout := n.server.opts.HandshakeTimeout
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := n.sock.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if err := n.greet(); err != nil {
		return err
	}
	for range maxOptions {
		ready, err := n.option(ctx)
		if err != nil {
			return err
		}
		if ready {
			return n.sock.SetDeadline(time.Time{})
		}
	}
	return badf("more than %d options", maxOptions)
}

func (n *negotiation) closeExport() {
	if n.export != nil {
		_ = n.export.Close() // it was only looked at
		n.export = nil
	}
}

func (n *negotiation) greet() error {
	b := be.AppendUint64(nil, magicServer)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := n.sock.Write(b); err != nil {
		return err
	}
	if err := n.in.need(4); err != nil {
		if errors.Is(err, io.EOF) {
			return errLeft // a probe of the port
		}
		return err
	}
	flags := be.Uint32(n.in.peek(4))
	n.in.skip(4)
	if known := uint32(flagFixedNewstyle | flagNoZeroes); flags&^known != 0 {
		return badf("client flags %#x", flags)
	}
	n.fixed = flags&uint32(flagFixedNewstyle) != 0
	n.noZeroes = flags&uint32(flagNoZeroes) != 0
	return nil
}

// option reads and answers one option. ready: the transmission phase begins.
func (n *negotiation) option(ctx context.Context) (ready bool, err error) {
	if err := n.in.need(optionBytes); err != nil {
		if errors.Is(err, io.EOF) {
			return false, errLeft
		}
		return false, err
	}
	opt, err := parseOption(n.in.peek(optionBytes))
	if err != nil {
		return false, err
	}
	n.in.skip(optionBytes)
	if opt.length > maxOptionBytes {
		return false, badf("option %d of %d bytes", opt.code, opt.length)
	}
	if err := n.in.need(int(opt.length)); err != nil {
		return false, err
	}
	data := n.in.peek(int(opt.length))
	n.in.skip(int(opt.length)) // data stays valid until the next fill
	if !n.fixed && opt.code != optExportName {
		return false, badf("option %d from a client without fixed newstyle", opt.code)
	}
	switch opt.code {
	case optExportName:
		return true, n.exportName(ctx, data)
	case optAbort:
		_ = n.reply(opt.code, repAck, nil) // the client may have left already
		return false, errLeft
	case optList:
		return false, n.list(data)
	case optStartTLS:
		return false, n.refuse(opt.code, repErrUnsupported, "this server has no TLS")
	case optInfo, optGo:
		return n.info(ctx, opt.code, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, n.refuse(opt.code, repErrInvalid, "STRUCTURED_REPLY has no data")
		}
		n.structured = true
		return false, n.reply(opt.code, repAck, nil)
	case optListMeta, optSetMeta:
		return false, n.meta(ctx, opt.code, data)
	}
	return false, n.refuse(opt.code, repErrUnsupported, fmt.Sprintf("option %d is not known", opt.code))
}

func (n *negotiation) reply(code, typ uint32, data []byte) error {
	_, err := n.sock.Write(appendOptionReply(nil, code, typ, data))
	return err
}

func (n *negotiation) refuse(code, typ uint32, message string) error {
	return n.reply(code, typ, []byte(clip(message)))
}

// open makes name the export of this connection.
func (n *negotiation) open(ctx context.Context, name string) error {
	if n.export != nil && n.name == name {
		return nil
	}
	n.closeExport()
	e, err := n.server.opts.Backend.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("open export %q: %w", name, err)
	}
	n.export, n.name = e, name
	return nil
}

// describe is what the client is told about the open export.
func (n *negotiation) describe() exportInfo {
	flags := flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes
	if n.export.ReadOnly() {
		flags |= flagReadOnly
	}
	if n.structured {
		flags |= flagDF
	}
	return exportInfo{size: uint64(n.export.Size()), flags: flags}
}

// exportName answers EXPORT_NAME, which has no way to refuse but to hang up.
func (n *negotiation) exportName(ctx context.Context, data []byte) error {
	if len(data) > maxStringBytes {
		return badf("an export name of %d bytes", len(data))
	}
	if err := n.open(ctx, string(data)); err != nil {
		return err
	}
	info := n.describe()
	b := be.AppendUint64(nil, info.size)
	b = be.AppendUint16(b, info.flags)
	if !n.noZeroes {
		b = append(b, make([]byte, exportReplyZeroes)...)
	}
	_, err := n.sock.Write(b)
	return err
}

func (n *negotiation) list(data []byte) error {
	if len(data) != 0 {
		return n.refuse(optList, repErrInvalid, "LIST has no data")
	}
	var b []byte
	for _, name := range n.server.opts.Backend.List() {
		if len(name) <= maxStringBytes {
			b = appendOptionReply(b, optList, repServer, appendString(nil, name))
		}
	}
	_, err := n.sock.Write(appendOptionReply(b, optList, repAck, nil))
	return err
}

// info answers INFO and GO. The block sizes are told whether asked for or not:
// the smallest is 1, so that a client may leave them alone.
func (n *negotiation) info(ctx context.Context, code uint32, data []byte) (ready bool, err error) {
	req, err := parseInfoRequest(data)
	if err != nil {
		return false, n.refuse(code, repErrInvalid, err.Error())
	}
	if err := n.open(ctx, req.name); err != nil {
		return false, n.refuse(code, replyTypeFor(err), err.Error())
	}
	sizes := blockSizes{minimum: 1, preferred: preferredBytes, maximum: maxPayload}
	b := appendOptionReply(nil, code, repInfo, n.describe().append(nil))
	b = appendOptionReply(b, code, repInfo, sizes.append(nil))
	b = appendOptionReply(b, code, repAck, nil)
	_, err = n.sock.Write(b)
	return code == optGo, err
}

// meta answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (n *negotiation) meta(ctx context.Context, code uint32, data []byte) error {
	req, err := parseMetaRequest(data)
	if err == nil && !n.structured {
		err = fmt.Errorf("metadata contexts need structured replies: %w", volume.ErrInvalid)
	}
	if err != nil {
		return n.refuse(code, repErrInvalid, err.Error())
	}
	if code == optSetMeta {
		n.metaSet = false // even if this request fails
	}
	if err := n.open(ctx, req.name); err != nil {
		return n.refuse(code, replyTypeFor(err), err.Error())
	}
	found := code == optListMeta && len(req.queries) == 0
	for _, q := range req.queries {
		// The bare namespace is a question, not a choice.
		found = found || q == contextAllocation || code == optListMeta && q == contextBase
	}
	var b []byte
	if found {
		id := uint32(0)
		if code == optSetMeta {
			n.metaName, n.metaSet = req.name, true
			id = contextAllocationID
		}
		b = appendOptionReply(b, code, repMetaContext, append(be.AppendUint32(nil, id), contextAllocation...))
	}
	_, err = n.sock.Write(appendOptionReply(b, code, repAck, nil))
	return err
}

// hasAllocation says whether base:allocation was chosen for the export that
// the transmission phase is about.
func (n *negotiation) hasAllocation() bool { return n.metaSet && n.metaName == n.name }
