package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// Backend knows the exports. Its methods may be called at the same time.
type Backend interface {
	// Open begins one connection's use of an export; the connection calls Close
	// once. A client that asks about an export (INFO) and then chooses it has
	// opened it once. Errors that wrap a sentinel of package volume reach the
	// client as what they mean, with their text.
	Open(ctx context.Context, name string) (Export, error)
	// List names the exports that any client may be shown.
	List() []string
}

// Export is one connection's view of a device. Submit may wait for the disk;
// the server sees to it that such requests overlap. Requests beyond Size, as it
// is at the time, are refused by the server.
type Export interface {
	block.Device
	// ReadOnly says whether every change is refused.
	ReadOnly() bool
	// BlockStatus describes n bytes from off on, or fewer, but at least one.
	// off and n lie within the device.
	BlockStatus(off, n int64) ([]block.Extent, error)
}

// Prompt is an Export that may say that Submit of a read or write never waits for
// a disk for long: then it is not worth a worker, whatever the clock says, which
// on a busy machine also measures how long this process did not run.
type Prompt interface{ Prompt() bool }

// Defaults of ServerOptions.
const (
	DefaultMaxInflight      = 128
	DefaultMaxInflightBytes = 8 << 20
	DefaultMaxConnections   = 1024
	DefaultWorkers          = 32
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultRequestTimeout   = 30 * time.Second
	DefaultWriteTimeout     = 30 * time.Second
)

// ServerOptions configure a Server. What is zero has its default.
type ServerOptions struct {
	Backend Backend      // needed
	Logger  *slog.Logger // nothing is logged without it

	MaxInflight      int   // requests of one connection that are unanswered; more are not read
	MaxInflightBytes int64 // of their payloads; at least block.MaxIOBytes
	MaxConnections   int   // further ones are closed at once
	Workers          int   // goroutines of one connection for requests that wait for the disk

	HandshakeTimeout time.Duration // for all of the negotiation
	RequestTimeout   time.Duration // for the rest of a request that has arrived in part
	WriteTimeout     time.Duration // for a peer that takes none of its replies
}

func (o *ServerOptions) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxInflight <= 0 {
		o.MaxInflight = DefaultMaxInflight
	}
	if o.MaxInflightBytes <= 0 {
		o.MaxInflightBytes = DefaultMaxInflightBytes
	}
	o.MaxInflightBytes = max(o.MaxInflightBytes, maxPayload)
	if o.MaxConnections <= 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = DefaultRequestTimeout
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
}

// Server serves the exports of a Backend. It may serve several listeners.
type Server struct {
	opts    ServerOptions
	buffers pool
	slots   chan struct{} // one for each connection; capacity MaxConnections
}

// NewServer makes a server; Serve starts it.
func NewServer(opts ServerOptions) *Server {
	opts.setDefaults()
	return &Server{opts: opts, slots: make(chan struct{}, opts.MaxConnections)}
}

// acceptPause is how long Serve waits when the system refuses a connection
// (out of file descriptors, say) before it tries again.
const acceptPause = 100 * time.Millisecond

// Serve accepts connections until ctx ends, and closes the listener. Then it
// closes the connections, without waiting for requests under way to be
// answered, waits for all of them to end, and returns nil. An error means that
// the listener broke.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("nbd: accept: %w", err)
		case err != nil:
			s.opts.Logger.Warn("cannot accept an nbd connection", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			s.opts.Logger.Warn("too many nbd connections", "peer", c.RemoteAddr().String(), "limit", s.opts.MaxConnections)
			_ = c.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-s.slots }()
			s.serveConn(ctx, c)
		})
	}
}

// serveConn serves one connection until it or ctx ends, and leaves nothing
// behind.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	log := s.opts.Logger.With("peer", nc.RemoteAddr().String())
	defer nc.Close() // nothing is owed to the peer any more
	sock, err := newSocket(nc)
	if err != nil {
		log.Warn("cannot set an nbd connection up", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	n := negotiation{server: s, sock: sock, in: newInbuf(sock, serverInputBytes)}
	err = n.run(ctx)
	stop()
	if err != nil {
		n.closeExport()
		if !errors.Is(err, errLeft) && ctx.Err() == nil {
			log.Warn("nbd negotiation failed", "error", err)
		}
		return
	}
	if err := sock.takeOver(); err != nil {
		n.closeExport()
		log.Warn("cannot set an nbd connection up", "error", err)
		return
	}
	log = log.With("export", n.name)
	log.Info("nbd connection opened", "readOnly", n.export.ReadOnly(), "size", n.export.Size())
	err = newConn(s, &n, log).run(ctx)
	if errors.Is(err, errLeft) || ctx.Err() != nil {
		log.Info("nbd connection closed")
		return
	}
	log.Warn("nbd connection broken", "error", err)
}
