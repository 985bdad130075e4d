package nbd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	clientInputBytes = 64 << 10
	// DefaultDialTimeout bounds Dial if its context has no deadline.
	DefaultDialTimeout = 10 * time.Second
)

// DialOptions say what to connect to. What is zero has its default.
type DialOptions struct {
	Addr string // "host:port", or the absolute path of a unix socket
	Name string // of the export

	Logger       *slog.Logger  // nothing is logged without it
	MaxInflight  int           // requests on the wire; more wait in order of arrival. DefaultMaxInflight
	WriteTimeout time.Duration // for a server that takes no requests. DefaultWriteTimeout
	// BlockStatus: negotiate what Client.BlockStatus needs, at the price of
	// slightly larger replies.
	BlockStatus bool
	// OnFail is called once if the connection breaks for any reason but Close,
	// after every request in flight was answered. Its error wraps
	// volume.ErrUnavailable. It must not call Close, but may have it called.
	OnFail func(error)
}

// Client is a block.Device over one connection. Submit does not block: it
// writes from its caller's goroutine, as far as the socket takes it. Done is
// called by the client's reader goroutine, or within Submit.
//
// Errors of requests: what the server says is volume.ErrNoSpace (ENOSPC),
// volume.ErrFenced (ESHUTDOWN), volume.ErrUnavailable (ENOMEM: the server's node was
// short of it) or volume.ErrFailed (anything else); when the
// connection breaks, everything in flight and later gets volume.ErrUnavailable,
// and it is not known which of the writes in flight were carried out. A server
// that answers a write before it has read all of it breaks the protocol, and
// what it wrote is undefined.
//
// A client never reconnects: what a new connection may do is decided by the
// epoch and session in its export's name.
type Client struct {
	opts   DialOptions
	sock   *socket
	flags  uint16 // transmission flags
	size   atomic.Int64
	slots  []slot
	ended  chan struct{} // closed when the reader has left
	bye    frame         // DISC
	status bool          // base:allocation was negotiated, as metaID
	metaID uint32

	// Owned by the reader.
	in     inbuf
	done   []completion // parsed replies, to be answered in one go
	onLoop block.Loop   // they are answered on its thread

	looped looped

	out sender // its mu guards what follows, too

	free    []uint32 // slots to use; a stack
	waiting queue    // without a slot. Invariant: empty if free is not
	err     error    // what further requests are answered with; set once, but Close replaces it
	cause   error    // why the connection broke, the first reason
	closing bool     // Close was called
}

// slot is a request on the wire. It belongs to Submit's caller until cookie is
// set, and to the reader from then on until it is back in free.
type slot struct {
	frame  frame
	io     *block.IO
	cookie atomic.Uint64 // 0: free. Generation, then index+1 in the low 32 bits
	gen    uint32

	// Of a structured reply that comes in several chunks; the reader's.
	err error
	got int64 // bytes of a read
}

// completion is an answered request.
type completion struct {
	index uint32
	err   error
}

// maxCompletions bounds a batch of replies.
const maxCompletions = 64

// Dial connects to a server and chooses an export. ctx bounds the connecting
// alone. An export that the server refuses is ErrNotFound, ErrInvalid,
// ErrFenced or ErrUnavailable by the server's reply; a connection that can't be
// made is ErrUnavailable; a server that lacks what a Device needs is
// ErrUnsupported.
func Dial(ctx context.Context, opts DialOptions) (*Client, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.MaxInflight <= 0 {
		opts.MaxInflight = DefaultMaxInflight
	}
	if opts.WriteTimeout <= 0 {
		opts.WriteTimeout = DefaultWriteTimeout
	}
	if len(opts.Name) > maxStringBytes {
		return nil, volume.Invalid("export name", opts.Name, fmt.Sprintf("at most %d bytes", maxStringBytes))
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultDialTimeout)
		defer cancel()
	}
	network := "tcp"
	if strings.HasPrefix(opts.Addr, "/") {
		network = "unix"
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, opts.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect to replica server %s: %w: %w", opts.Addr, volume.ErrUnavailable, err)
	}
	c, err := connect(ctx, nc, opts)
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("open export %q of %s: %w", opts.Name, opts.Addr, err)
	}
	return c, nil
}

// connect makes a client of an open connection.
func connect(ctx context.Context, nc net.Conn, opts DialOptions) (*Client, error) {
	sock, err := newSocket(nc)
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts: opts, sock: sock, in: newInbuf(sock, clientInputBytes),
		slots: make([]slot, opts.MaxInflight), free: make([]uint32, opts.MaxInflight),
		done: make([]completion, 0, maxCompletions), ended: make(chan struct{}),
	}
	if err := c.negotiate(ctx); err != nil {
		return nil, err
	}
	for i := range c.free {
		c.free[i] = uint32(len(c.free) - 1 - i)
	}
	if err := sock.takeOver(); err != nil {
		return nil, err
	}
	c.out.sock, c.out.timeout, c.out.failed = sock, opts.WriteTimeout, c.abort
	c.out.start()
	go c.read() // ends with the connection; Close waits for it
	return c, nil
}

// Size implements block.Device: the size that the server told, or GrewTo did
// later.
func (c *Client) Size() int64 { return c.size.Load() }

// ReadOnly says whether the server refuses every change.
func (c *Client) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// GrewTo tells the client that the export has grown to size bytes, which NBD
// has no message for. The server must have grown before: it refuses a write
// beyond its end with ENOSPC, which looks like a full pool. A size that is not
// larger changes nothing.
func (c *Client) GrewTo(size int64) {
	for {
		old := c.size.Load()
		if size <= old || c.size.CompareAndSwap(old, size) {
			return
		}
	}
}

// Close implements block.Device. What is in flight is answered with
// volume.ErrClosed, and it is not known whether it was carried out. Close must
// not be called from Done or OnFail, which it waits for.
func (c *Client) Close() error {
	c.out.mu.Lock()
	run := false
	if !c.closing {
		c.closing = true
		c.err = fmt.Errorf("export %q of %s: %w", c.opts.Name, c.opts.Addr, volume.ErrClosed)
		// A courtesy: the server then knows that nothing broke.
		request{typ: cmdDisconnect}.put(c.bye.head[:])
		c.bye.headLen = requestBytes
		run = c.out.pushLocked(&c.bye, &c.bye) && c.out.claimLocked()
	}
	c.out.mu.Unlock()
	if run {
		c.out.run()
	}
	c.abort(volume.ErrClosed)
	<-c.ended
	return nil
}

// abort closes the socket, which ends the reader, and remembers the first
// reason.
func (c *Client) abort(err error) {
	c.out.mu.Lock()
	if c.cause == nil {
		c.cause = err
	}
	c.out.mu.Unlock()
	_ = c.sock.Close() // an error would say that it is closed
}
