package service

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A call that hangs in the node ends at the caller's deadline, here and there.
func TestHungCallEndsOnBothSides(t *testing.T) {
	ended, given := make(chan struct{}), make(chan struct{})
	addr := serve(t, &fake{hold: func(ctx context.Context) {
		<-ctx.Done()
		close(ended)
		<-given // else its answer may be quicker than the caller's own clock
	}})
	err := newClients(t).CreateReplica(within(t, 2*time.Second), addr, agent.CreateReplica{Volume: vol, UID: uid})
	close(given)
	if !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the server still works on it")
	}
}

// A server that gets garbage or half a request drops that connection and serves
// the others.
func TestServerSurvivesBadPeers(t *testing.T) {
	addr := serve(t, &fake{})
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
