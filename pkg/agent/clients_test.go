package agent

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	vol = volume.ID("hv-0123456789abcdef0123456789abcdef")
	uid = volume.UID("00000000-0000-4000-8000-000000000001")
	mib = 1 << 20
)

// patience is the deadline of calls that are to succeed.
const patience = time.Minute

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// peer is an agent without replicas, which answers after it has waited.
type peer struct {
	agentpb.UnimplementedAgentServer
	wait func(context.Context)
}

var (
	atOnce   = peer{wait: func(context.Context) {}}
	untilEnd = peer{wait: func(ctx context.Context) { <-ctx.Done() }}
)

func (p peer) DeleteReplica(ctx context.Context, _ *agentpb.DeleteReplicaRequest) (*agentpb.DeleteReplicaResponse, error) {
	p.wait(ctx)
	return &agentpb.DeleteReplicaResponse{}, ctx.Err()
}

func (p peer) ListReplicas(ctx context.Context, _ *agentpb.ListReplicasRequest) (*agentpb.ListReplicasResponse, error) {
	p.wait(ctx)
	return &agentpb.ListReplicasResponse{}, ctx.Err()
}

// serve runs a peer on addr until the function returned is called.
func serve(t *testing.T, addr string, p peer) (string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	agentpb.RegisterAgentServer(g, p)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	stop := sync.OnceFunc(func() { g.Stop(); wg.Wait() })
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func newClients(t *testing.T) *Clients {
	c := NewClients()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// calls is one call of each sort.
func calls(c *Clients, addr string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"create": func(ctx context.Context) error {
			return c.CreateReplica(ctx, addr, CreateReplica{Volume: vol, UID: uid, Pool: "p", SizeBytes: mib})
		},
		"delete": func(ctx context.Context) error { return c.DeleteReplica(ctx, addr, vol, uid) },
		"open": func(ctx context.Context) error {
			_, err := c.OpenReplica(ctx, addr, OpenReplica{Volume: vol, UID: uid, Epoch: 1, Session: 1, Holder: "n1"})
			return err
		},
		"grow": func(ctx context.Context) error {
			return c.GrowReplica(ctx, addr, GrowReplica{UID: uid, Epoch: 1, Session: 1, SizeBytes: 2 * mib})
		},
		"list": func(ctx context.Context) error { _, err := c.ListReplicas(ctx, addr); return err },
	}
}

// expectUnavailable makes every call with a short deadline.
func expectUnavailable(t *testing.T, c *Clients, addr string) {
	for name, do := range calls(c, addr) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			done := make(chan error, 1)
			go func() { done <- do(within(t, 300*time.Millisecond)) }()
			select {
			case err := <-done:
				if !errors.Is(err, volume.ErrUnavailable) {
					t.Errorf("got %v", err)
				}
			case <-time.After(patience):
				t.Errorf("no answer after %v", patience)
			}
		})
	}
}

// listen accepts connections and hands them to handle.
func listen(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			go handle(conn)
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func TestPeersThatDoNotAnswer(t *testing.T) {
	t.Run("silent peer", func(t *testing.T) { // accepts and says nothing
		expectUnavailable(t, newClients(t), listen(t, func(net.Conn) {}))
	})
	t.Run("peer that speaks garbage", func(t *testing.T) {
		expectUnavailable(t, newClients(t), listen(t, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n\r\nhello")) }))
	})
	t.Run("peer that hangs up", func(t *testing.T) {
		expectUnavailable(t, newClients(t), listen(t, func(c net.Conn) { _ = c.Close() }))
	})
	t.Run("nobody there", func(t *testing.T) {
		addr, stop := serve(t, "127.0.0.1:0", atOnce)
		stop()
		expectUnavailable(t, newClients(t), addr)
	})
	t.Run("not an address", func(t *testing.T) {
		for name, do := range calls(newClients(t), "nonsense") {
			if err := do(within(t, patience)); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	})
}

// A context without a deadline gets one.
func TestHungCallEnds(t *testing.T) {
	addr, _ := serve(t, "127.0.0.1:0", untilEnd)
	c := newClients(t)
	c.timeout = 300 * time.Millisecond
	if err := c.DeleteReplica(context.Background(), addr, vol, uid); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestCallerCancels(t *testing.T) {
	addr, _ := serve(t, "127.0.0.1:0", untilEnd)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err := newClients(t).DeleteReplica(ctx, addr, vol, uid)
	if !errors.Is(err, volume.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// A node that comes back at its address is reached again by the same Clients.
func TestPeerComesBack(t *testing.T) {
	addr, stop := serve(t, "127.0.0.1:0", atOnce)
	c := newClients(t)
	if _, err := c.ListReplicas(within(t, patience), addr); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.ListReplicas(within(t, patience), addr); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	serve(t, addr, atOnce)
	deadline := within(t, patience)
	for {
		_, err := c.ListReplicas(within(t, time.Second), addr)
		if err == nil {
			return
		}
		if !errors.Is(err, volume.ErrUnavailable) || deadline.Err() != nil {
			t.Fatalf("got %v", err)
		}
		time.Sleep(20 * time.Millisecond) // between two polls
	}
}

func TestClosedClients(t *testing.T) {
	addr, _ := serve(t, "127.0.0.1:0", atOnce)
	c := NewClients()
	if _, err := c.ListReplicas(within(t, patience), addr); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	for name, do := range calls(c, addr) {
		if err := do(within(t, patience)); !errors.Is(err, volume.ErrClosed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
