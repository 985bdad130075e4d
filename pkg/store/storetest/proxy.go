package storetest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Proxy forwards TCP connections to one address, until it is told not to.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context // ends with the proxy
	wg       sync.WaitGroup

	mu     sync.Mutex
	mode   mode                  // guarded by mu
	conns  map[net.Conn]struct{} // guarded by mu; both ends of every connection
	closed bool                  // guarded by mu
}

// mode is what a Proxy does with bytes. Bytes that are not forwarded are
// dropped; Restore then breaks the connections, which have holes.
type mode uint8

const (
	forward mode = iota
	silent       // nothing passes, in either direction; connections stay open
	oneWay       // only the client's bytes pass
)

// NewProxy starts a proxy on loopback; it ends with the test.
func NewProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, listener: l, ctx: ctx, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		cancel()
		p.close()
	})
	return p
}

// Addr is the "host:port" to connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut makes the proxy swallow everything; connections are accepted and hang.
func (p *Proxy) Cut() { p.setMode(silent) }

// LoseAnswers makes the proxy swallow what the server sends.
func (p *Proxy) LoseAnswers() { p.setMode(oneWay) }

// Restore forwards again, on new connections: those before are broken.
func (p *Proxy) Restore() {
	p.setMode(forward)
	p.Break()
}

// Break closes all connections.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) setMode(m mode) {
	p.mu.Lock()
	p.mode = m
	p.mu.Unlock()
}

func (p *Proxy) currentMode() mode {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.Break()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// serve forwards one connection until either end closes.
func (p *Proxy) serve(client net.Conn) {
	defer p.track(client)()
	var dialer net.Dialer
	server, err := dialer.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer p.track(server)()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		p.copy(server, client, func(m mode) bool { return m != silent })
	})
	wg.Go(func() {
		defer client.Close()
		p.copy(client, server, func(m mode) bool { return m == forward })
	})
	wg.Wait()
}

// track registers a connection; the function returned closes and forgets it.
func (p *Proxy) track(c net.Conn) func() {
	p.mu.Lock()
	p.conns[c] = struct{}{}
	if p.closed {
		_ = c.Close()
	}
	p.mu.Unlock()
	return func() {
		_ = c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	}
}

// copy forwards one direction, in the modes in which it passes.
func (p *Proxy) copy(to, from net.Conn, passes func(mode) bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if !passes(p.currentMode()) {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
