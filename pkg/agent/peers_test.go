package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

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
		addr, stop := serve(t, "127.0.0.1:0", &fake{})
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

// A call that hangs in the peer ends at its deadline, here and there.
func TestHungCallEndsOnBothSides(t *testing.T) {
	ended := make(chan struct{})
	f := &fake{hold: func(ctx context.Context) { <-ctx.Done(); close(ended) }}
	addr, _ := serve(t, "127.0.0.1:0", f)
	c := newClients(t)
	c.timeout = 300 * time.Millisecond // for a context without deadline
	err := c.CreateReplica(context.Background(), addr, replica.CreateOptions{Volume: vol, UID: uid})
	if !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the server still works on it")
	}
}

func TestCallerCancels(t *testing.T) {
	addr, _ := serve(t, "127.0.0.1:0", &fake{hold: func(ctx context.Context) { <-ctx.Done() }})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err := newClients(t).DeleteReplica(ctx, addr, vol, uid)
	if !errors.Is(err, volume.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// A node that comes back at its address is reached again by the same Clients.
func TestPeerComesBack(t *testing.T) {
	addr, stop := serve(t, "127.0.0.1:0", &fake{})
	c := newClients(t)
	if _, err := c.ListReplicas(within(t, patience), addr); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := c.ListReplicas(within(t, patience), addr); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	serve(t, addr, &fake{})
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
	addr, _ := serve(t, "127.0.0.1:0", &fake{})
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

// A server that gets garbage or half a request drops that connection and serves
// the others.
func TestServerSurvivesBadPeers(t *testing.T) {
	addr, _ := serve(t, "127.0.0.1:0", &fake{})
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for _, sent := range []string{"", "GET / HTTP/1.1\r\n\r\n", preface, preface + "\x00\x00\x04\x08\x00\x00\x00\x00\x00garb", preface + strings.Repeat("\xff", 1<<16)} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, sent)
		t.Cleanup(func() { _ = conn.Close() })
	}
	if _, err := newClients(t).ListReplicas(within(t, patience), addr); err != nil {
		t.Fatal(err)
	}

	// A message that is no protobuf, by a peer that otherwise speaks gRPC.
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(within(t, patience), agentpb.Agent_CreateReplica_FullMethodName, []byte("\xff\xff\xff\xff"), &[]byte{}, grpc.ForceCodec(raw{}))
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
}

// raw is a codec that sends bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }
