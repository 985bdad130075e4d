package nbd

import (
	"errors"
	"io"
	"time"
)

// needRequest waits for a whole header. Between requests a client may be silent
// for as long as it likes.
func (c *conn) needRequest() error {
	for c.in.buffered() < requestBytes {
		if c.in.buffered() > 0 {
			if err := c.fillRest(); err != nil {
				return err
			}
			continue
		}
		c.uncork()
		if err := c.setReadDeadline(time.Time{}); err != nil {
			return err
		}
		if err := c.in.fill(); errors.Is(err, io.EOF) {
			return errLeft
		} else if err != nil {
			return err
		}
	}
	return nil
}

// fillRest reads more of a request that has begun.
func (c *conn) fillRest() error {
	if err := c.beforeRest(); err != nil {
		return err
	}
	return unexpected(c.in.fill())
}

// beforeRest prepares for reading more of a request that has begun.
func (c *conn) beforeRest() error {
	c.uncork()
	return c.setReadDeadline(time.Now().Add(c.server.opts.RequestTimeout))
}

// setReadDeadline sets the deadline unless the one that is set is near enough,
// for setting it takes a while.
func (c *conn) setReadDeadline(t time.Time) error {
	if t.IsZero() == c.readDeadline.IsZero() && t.Sub(c.readDeadline) < c.server.opts.RequestTimeout/4 {
		return nil
	}
	c.readDeadline = t
	return c.sock.SetReadDeadline(t)
}

// readPayload reads p, which follows in the input.
func (c *conn) readPayload(p []byte) error {
	p = p[c.in.take(p):]
	for len(p) > 0 {
		if len(p) < len(c.in.buf)/8 {
			// Little is missing: with it comes what follows it.
			if err := c.fillRest(); err != nil {
				return err
			}
			p = p[c.in.take(p):]
			continue
		}
		if err := c.beforeRest(); err != nil {
			return err
		}
		n, err := c.sock.Read(p)
		if n == 0 && err != nil {
			return unexpected(err)
		}
		p = p[n:]
	}
	return nil
}

// skipPayload drops n bytes of the input.
func (c *conn) skipPayload(n int64) error {
	for {
		have := min(int64(c.in.buffered()), n)
		c.in.skip(int(have))
		if n -= have; n == 0 {
			return nil
		}
		if err := c.fillRest(); err != nil {
			return err
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
