package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// peerTimeout is how long the kernel waits for a peer that acknowledges
	// nothing, or takes nothing, before it gives the connection up.
	peerTimeout = 10 * time.Second
	// keepAlive: an idle connection to a dead host is noticed after
	// keepAlive * (1 + keepAliveCount), or peerTimeout, whichever comes first.
	keepAlive      = 3 * time.Second
	keepAliveCount = 3
	// maxVector is the most pieces of one vectored write.
	maxVector = 128
)

// socket is a connection whose writes can be tried without waiting. The
// standard library always waits, and a caller of Submit or Done must not: see
// the package comment. A connection that has no file descriptor (TLS, a pipe in
// a test) takes nothing when tried, so that the writer goroutine does it all.
//
// Reads and writes may run at the same time; each kind in one goroutine at a
// time.
type socket struct {
	net.Conn
	raw syscall.RawConn // nil without a descriptor
	own *ownSocket      // instead of Conn, after takeOver

	// For the write under way; fields, so that it allocates nothing.
	iov     []unix.Iovec
	written int
	errno   syscall.Errno
	tryFn   func(fd uintptr) bool
	waitFn  func(fd uintptr) bool
}

// newSocket takes c over and sets the options of a TCP connection: without
// TCP_NODELAY a reply can wait 40 ms for the peer's delayed acknowledgement.
func newSocket(c net.Conn) (*socket, error) {
	s := &socket{Conn: c, iov: make([]unix.Iovec, 0, maxVector)}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return s, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("nbd: take the socket: %w", err)
	}
	s.raw = raw
	s.tryFn = func(fd uintptr) bool { s.writev(fd); return true }
	s.waitFn = func(fd uintptr) bool { s.writev(fd); return s.errno != unix.EAGAIN }
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := setTCP(tcp, raw); err != nil {
			return nil, fmt.Errorf("nbd: set the socket's options: %w", err)
		}
	}
	return s, nil
}

func setTCP(tcp *net.TCPConn, raw syscall.RawConn) error {
	ka := net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: keepAliveCount}
	if err := errors.Join(tcp.SetNoDelay(true), tcp.SetKeepAliveConfig(ka)); err != nil {
		return err
	}
	var optErr error
	err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout/time.Millisecond))
	})
	return errors.Join(err, optErr)
}

// try writes what the socket takes at once and returns what is left of vec.
func (s *socket) try(vec [][]byte) ([][]byte, error) {
	if s.raw == nil {
		return vec, nil
	}
	return s.vectored(vec, s.tryFn)
}

// write writes some of vec, waiting for the peer until the write deadline, and
// returns what is left.
func (s *socket) write(vec [][]byte) ([][]byte, error) {
	if s.raw == nil {
		n, err := s.Write(vec[0])
		return advance(vec, n), err
	}
	return s.vectored(vec, s.waitFn)
}

func (s *socket) vectored(vec [][]byte, fn func(uintptr) bool) ([][]byte, error) {
	s.iov = s.iov[:0]
	for _, p := range vec {
		if len(p) > 0 {
			v := unix.Iovec{Base: &p[0]}
			v.SetLen(len(p))
			s.iov = append(s.iov, v)
		}
	}
	s.written, s.errno = 0, 0
	err := s.rawWrite(fn)
	clear(s.iov) // they must not keep buffers alive
	if err != nil {
		return vec, err
	}
	if s.errno != 0 && s.errno != unix.EAGAIN {
		return vec, fmt.Errorf("write to %s: %w", s.RemoteAddr(), s.errno)
	}
	return advance(vec, s.written), nil
}

// rawWrite calls fn until it is content, and waits for the peer in between.
func (s *socket) rawWrite(fn func(uintptr) bool) error {
	if s.own == nil {
		return s.raw.Write(fn)
	}
	for !fn(uintptr(s.own.fd)) {
		if err := s.own.awaitOutput(); err != nil {
			return err
		}
	}
	return nil
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if s.own == nil || len(p) == 0 {
		return s.Conn.Read(p)
	}
	return s.own.read(p)
}

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(t time.Time) error {
	if s.own == nil {
		return s.Conn.SetWriteDeadline(t)
	}
	s.own.writeDeadline = t // who writes sets it
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *socket) SetReadDeadline(t time.Time) error {
	if s.own == nil {
		return s.Conn.SetReadDeadline(t)
	}
	s.own.readDeadline = t // who reads sets it
	return nil
}

// Close implements net.Conn. After takeOver, release has to follow.
func (s *socket) Close() error {
	if s.own == nil {
		return s.Conn.Close()
	}
	s.own.shutdown()
	return nil
}

// release gives the descriptors of takeOver back.
func (s *socket) release() {
	if s.own != nil {
		s.own.close()
	}
}

// writev writes s.iov once. unix.Writev would tell the race detector about the
// buffers only after the call, when the peer's answer may already have given
// them back to their owner.
func (s *socket) writev(fd uintptr) {
	for {
		n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.iov[0])), uintptr(len(s.iov)))
		if e == unix.EINTR {
			continue
		}
		s.errno = e
		if e == 0 {
			s.written = int(n)
		}
		return
	}
}

// advance drops the first n bytes of vec, which it changes.
func advance(vec [][]byte, n int) [][]byte {
	for len(vec) > 0 && n >= len(vec[0]) {
		n -= len(vec[0])
		vec[0] = nil
		vec = vec[1:]
	}
	if n > 0 {
		vec[0] = vec[0][n:]
	}
	return vec
}

// inbuf is the input of a connection: a buffer out of which small messages are
// parsed in batches. Its owner is the connection's reader goroutine.
type inbuf struct {
	src        io.Reader
	buf        []byte
	start, end int // Invariant: 0 <= start <= end <= len(buf)
}

func newInbuf(src io.Reader, size int) inbuf { return inbuf{src: src, buf: make([]byte, size)} }

// buffered is the number of bytes that can be had without reading.
func (b *inbuf) buffered() int { return b.end - b.start }

// peek returns the first n bytes, which must be buffered, until the next fill.
func (b *inbuf) peek(n int) []byte { return b.buf[b.start : b.start+n] }

// skip drops n buffered bytes.
func (b *inbuf) skip(n int) { b.start += n }

// take copies buffered bytes into p and returns how many.
func (b *inbuf) take(p []byte) int {
	n := copy(p, b.buf[b.start:b.end])
	b.start += n
	return n
}

// space makes room behind what is buffered, and returns it.
func (b *inbuf) space() []byte {
	switch {
	case b.start == b.end:
		b.start, b.end = 0, 0
	case b.end > len(b.buf)/2:
		b.end = copy(b.buf, b.buf[b.start:b.end])
		b.start = 0
	}
	return b.buf[b.end:]
}

// fill reads once from the source; at least one byte, or an error.
func (b *inbuf) fill() error {
	n, err := b.src.Read(b.space())
	b.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// need fills until n bytes are buffered; n is at most the size of the buffer's
// half. The source's end in between is io.ErrUnexpectedEOF.
func (b *inbuf) need(n int) error {
	for b.buffered() < n {
		if err := b.fill(); err != nil {
			if errors.Is(err, io.EOF) && b.buffered() > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
