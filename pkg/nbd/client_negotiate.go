package nbd

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// negotiate is the client's side of the handshake. ctx ends it.
func (c *Client) negotiate(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.sock.SetDeadline(time.Unix(1, 0)) })
	err := c.haggle()
	if !stop() {
		// The context ended: whatever went wrong is a consequence of it, and
		// the deadline may be set at any moment.
		return fmt.Errorf("negotiate: %w: %w", volume.ErrUnavailable, ctx.Err())
	}
	return err
}

func (c *Client) haggle() error {
	if err := c.greeting(); err != nil {
		return err
	}
	if c.opts.BlockStatus {
		if err := c.optStructured(); err != nil {
			return err
		}
		if err := c.optMeta(); err != nil {
			return err
		}
	}
	return c.optGo()
}

// broken is an error of the connection, or of what came over it, during the
// handshake.
func broken(err error) error {
	return fmt.Errorf("negotiate: %w: %w", volume.ErrUnavailable, unexpected(err))
}

func (c *Client) greeting() error {
	if err := c.in.need(greetingBytes); err != nil {
		return broken(err)
	}
	b := c.in.peek(greetingBytes)
	c.in.skip(greetingBytes)
	if be.Uint64(b) != magicServer || be.Uint64(b[8:]) != magicOption {
		return broken(badf("this is no newstyle nbd server"))
	}
	flags := be.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("the server has no fixed newstyle: %w", volume.ErrUnsupported)
	}
	answer := uint32(flags & (flagFixedNewstyle | flagNoZeroes))
	if _, err := c.sock.Write(be.AppendUint32(nil, answer)); err != nil {
		return broken(err)
	}
	return nil
}

// ask sends an option and gives each(type, data) its replies until ACK; an
// error reply is returned as what it means. data is valid during the call.
func (c *Client) ask(code uint32, data []byte, each func(typ uint32, data []byte) error) error {
	if _, err := c.sock.Write(appendOption(nil, code, data)); err != nil {
		return broken(err)
	}
	for range maxOptions {
		if err := c.in.need(optionReplyBytes); err != nil {
			return broken(err)
		}
		r, err := parseOptionReply(c.in.peek(optionReplyBytes))
		if err != nil {
			return broken(err)
		}
		c.in.skip(optionReplyBytes)
		reply := make([]byte, r.length)
		if err := c.readHandshake(reply); err != nil {
			return broken(err)
		}
		switch {
		case r.code != code:
			return broken(badf("a reply to option %d, asked was %d", r.code, code))
		case r.typ&repErrorBit != 0:
			return refusal(r.typ, clip(string(reply)))
		case r.typ == repAck:
			return nil
		}
		if err := each(r.typ, reply); err != nil {
			return err
		}
	}
	return broken(badf("more than %d replies to option %d", maxOptions, code))
}

func (c *Client) readHandshake(p []byte) error {
	for {
		p = p[c.in.take(p):]
		if len(p) == 0 {
			return nil
		}
		if err := c.in.fill(); err != nil {
			return err
		}
	}
}

func unasked(typ uint32, _ []byte) error {
	return broken(badf("option reply %d was not asked for", typ))
}

func (c *Client) optStructured() error {
	return c.ask(optStructuredReply, nil, unasked)
}

func (c *Client) optMeta() error {
	req := metaRequest{name: c.opts.Name, queries: []string{contextAllocation}}
	err := c.ask(optSetMeta, req.append(nil), func(typ uint32, data []byte) error {
		if typ != repMetaContext || len(data) < 4 || string(data[4:]) != contextAllocation {
			return unasked(typ, data)
		}
		c.status, c.metaID = true, be.Uint32(data)
		return nil
	})
	if err == nil && !c.status {
		err = fmt.Errorf("%s: %w by the server", contextAllocation, volume.ErrUnsupported)
	}
	return err
}

func (c *Client) optGo() error {
	var export exportInfo
	sizes := blockSizes{minimum: 1, maximum: defaultMaxPayload}
	req := infoRequest{name: c.opts.Name, infos: []uint16{infoBlockSize}}
	err := c.ask(optGo, req.append(nil), func(typ uint32, data []byte) error {
		if typ != repInfo {
			return unasked(typ, data)
		}
		if err := parseInfo(data, &export, &sizes); err != nil {
			return broken(err)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case export.flags&flagHasFlags == 0:
		return broken(badf("no information about the export"))
	case export.size > math.MaxInt64:
		return broken(badf("an export of %d bytes", export.size))
	case sizes.minimum > 1, sizes.maximum < block.MaxIOBytes:
		return fmt.Errorf("requests of 1 to %d bytes: %w by the server, which allows %d to %d",
			block.MaxIOBytes, volume.ErrUnsupported, sizes.minimum, sizes.maximum)
	}
	c.flags = export.flags
	c.size.Store(int64(export.size))
	return nil
}
