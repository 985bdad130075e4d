package nbd

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// serverInputBytes is the size of a server connection's input buffer.
const serverInputBytes = 128 << 10

// conn is a server connection in the transmission phase.
//
// Its reader (the goroutine of run) parses requests. A request that the device
// answers at once is executed by the reader itself and its reply is held back,
// or corked, until the input is exhausted, so that a batch of small writes costs
// one read and one write of the socket. Requests that wait for the disk are
// handed to workers, so that they overlap and hold up nothing behind them:
// always those that make data durable or work on ranges, and the rest while the
// device is seen to be slow (see speed), unless it is Prompt.
type conn struct {
	server     *Server
	sock       *socket
	export     Export
	log        *slog.Logger
	structured bool
	allocation bool // base:allocation was negotiated

	// Owned by the reader.
	in            inbuf
	cork          *frame // chain of replies that are not yet given to out
	corkLast      *frame
	corkBytes     int
	readDeadline  time.Time // as it was last set; zero for none
	out           sender
	speed         speed
	prompt        bool          // see Prompt
	work          chan *task    // to a worker that is idle; unbuffered, so that nothing is left in it
	stop          chan struct{} // ends the workers
	gone          chan struct{} // closed when broken is set
	workers       sync.WaitGroup
	spawned       int // workers; owned by the reader
	errorReported atomic.Bool

	mu       sync.Mutex
	changed  sync.Cond // inflight, bytes or broken changed
	free     *task     // chain of tasks to use again
	inflight int       // tasks in use; at most MaxInflight
	bytes    int64     // of their buffers; at most MaxInflightBytes
	broken   error     // the connection's first failure; the reader must not wait any more
}

func newConn(s *Server, n *negotiation, log *slog.Logger) *conn {
	c := &conn{
		server: s, sock: n.sock, in: n.in, export: n.export, log: log,
		structured: n.structured, allocation: n.hasAllocation(),
		work: make(chan *task), stop: make(chan struct{}), gone: make(chan struct{}),
	}
	c.changed.L = &c.mu
	if p, ok := n.export.(Prompt); ok {
		c.prompt = p.Prompt()
	}
	c.out.sock, c.out.timeout = n.sock, s.opts.WriteTimeout
	c.out.release, c.out.failed = c.sent, c.abort
	c.out.start()
	return c
}

// run serves requests until the connection or ctx ends, and returns why. Then
// nothing of the connection is left: no goroutine, and no request in the
// device.
func (c *conn) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.abort(ctx.Err()) })
	err := c.serve()
	stop()
	c.abort(err)
	c.out.fail(err) // replies that are still to come go nowhere
	c.uncork()
	if cerr := c.export.Close(); cerr != nil { // answers what is under way
		c.log.Warn("cannot close an export", "error", cerr)
	}
	c.mu.Lock()
	for c.inflight > 0 {
		c.changed.Wait()
	}
	err = c.broken
	c.mu.Unlock()
	close(c.stop)
	c.workers.Wait()
	c.out.close()
	c.sock.release()
	return err
}

// abort closes the socket, which ends the reader, and remembers the first
// reason.
func (c *conn) abort(err error) {
	c.mu.Lock()
	if c.broken == nil {
		c.broken = err
		close(c.gone)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = c.sock.Close() // an error would say that it is closed
}

// serve is the reader.
func (c *conn) serve() error {
	for {
		if err := c.needRequest(); err != nil {
			return err
		}
		req, err := parseRequest(c.in.peek(requestBytes))
		if err != nil {
			return err
		}
		c.in.skip(requestBytes)
		if req.typ == cmdDisconnect {
			return c.drain()
		}
		if err := c.handle(req); err != nil {
			return err
		}
	}
}

// drain waits until everything has been answered, as DISC asks.
func (c *conn) drain() error {
	c.uncork()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.inflight > 0 && c.broken == nil {
		c.changed.Wait()
	}
	if c.broken != nil {
		return c.broken
	}
	return errLeft
}

// acquire takes a task for a request with a payload of n bytes, in or out. It
// waits while the limits are reached.
func (c *conn) acquire(n int64) (*task, error) {
	opts := &c.server.opts
	c.mu.Lock()
	for c.broken == nil && (c.inflight >= opts.MaxInflight || c.bytes+n > opts.MaxInflightBytes) {
		if c.cork != nil {
			c.mu.Unlock()
			c.uncork()
			c.mu.Lock()
			continue
		}
		c.changed.Wait()
	}
	if err := c.broken; err != nil {
		c.mu.Unlock()
		return nil, err
	}
	c.inflight++
	c.bytes += n
	t := c.free
	if t != nil {
		c.free = t.nextFree
	}
	c.mu.Unlock()
	if t == nil {
		t = &task{conn: c}
		t.frame.owner = t
		t.io.Done, t.io.User = c.finished, t
	}
	t.nextFree = nil
	if n > 0 {
		t.reserved = n
		t.buf = c.server.buffers.get(int(n))
	}
	return t, nil
}

// releaseBuffer gives a task's payload memory back, as soon as it is not needed.
func (c *conn) releaseBuffer(t *task) {
	if t.buf == nil {
		return
	}
	c.server.buffers.put(t.buf)
	t.buf = nil
	c.mu.Lock()
	c.bytes -= t.reserved
	c.changed.Broadcast()
	c.mu.Unlock()
	t.reserved = 0
}

// sent takes back the tasks of a chain of replies that were sent or dropped.
func (c *conn) sent(chain *frame) {
	for f := chain; f != nil; f = f.next {
		c.releaseBuffer(f.owner)
		f.payload = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for chain != nil {
		f := chain
		chain, f.next = f.next, nil
		f.owner.nextFree, c.free = c.free, f.owner
		c.inflight--
	}
	c.changed.Broadcast()
}

// hold corks a reply; only the reader may.
func (c *conn) hold(t *task) {
	f := &t.frame
	f.next = nil
	if c.cork == nil {
		c.cork = f
	} else {
		c.corkLast.next = f
	}
	c.corkLast = f
	c.corkBytes += f.headLen + len(f.payload)
	if c.corkBytes > maxCorkBytes {
		c.uncork()
	}
}

// maxCorkBytes bounds what is held back, in bytes of replies.
const maxCorkBytes = 128 << 10

// uncork sends what was held back; only the reader may.
func (c *conn) uncork() {
	if c.cork == nil {
		return
	}
	first, last := c.cork, c.corkLast
	c.cork, c.corkLast, c.corkBytes = nil, nil, 0
	c.out.send(first, last)
}

// reportError logs the first failure of the device that this connection meets;
// the client gets only a number.
func (c *conn) reportError(io *block.IO, err error) {
	if c.errorReported.CompareAndSwap(false, true) {
		c.log.Warn("nbd request failed; further failures of this connection are not logged",
			"op", io.Op.String(), "offset", io.Off, "length", io.Len, "error", err)
	}
}
