package csi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// testController answers CreateVolume as a test wants.
type testController struct {
	csipb.UnimplementedControllerServer
	create func(context.Context) error
}

func (c testController) CreateVolume(ctx context.Context, _ *csipb.CreateVolumeRequest) (*csipb.CreateVolumeResponse, error) {
	return &csipb.CreateVolumeResponse{}, c.create(ctx)
}

// safeBuffer may be written and read by several goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve runs a server until the test ends and returns a connection to it.
func serve(t *testing.T, socket string, o ServerOptions) *grpc.ClientConn {
	t.Helper()
	o.Socket = socket
	o.Identity = NewIdentity(func(context.Context) error { return nil })
	server, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return conn
}

func TestServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	logged := &safeBuffer{}
	var answer func(context.Context) error
	conn := serve(t, socket, ServerOptions{
		Controller: testController{create: func(ctx context.Context) error { return answer(ctx) }},
		Logger:     slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	call := func(ctx context.Context) error {
		_, err := csipb.NewControllerClient(conn).CreateVolume(ctx, &csipb.CreateVolumeRequest{
			Name: "named", Secrets: map[string]string{"key": "very-secret"},
		}, grpc.WaitForReady(true))
		return err
	}
	deadline := func(within, atLeast time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > within || time.Until(d) < atLeast {
				return fmt.Errorf("deadline %v, %t", d, ok)
			}
			return nil
		}
	}
	tests := []struct {
		name   string
		answer func(context.Context) error
		code   codes.Code
	}{
		{"success", func(context.Context) error { return nil }, codes.OK},
		{"sentinel", func(context.Context) error { return fmt.Errorf("deep: %w", volume.ErrNoSpace) }, codes.ResourceExhausted},
		{"field", func(context.Context) error { return volume.Invalid("f", "v", "w") }, codes.InvalidArgument},
		{"status", func(context.Context) error { return status.Error(codes.Aborted, "token") }, codes.Aborted},
		{"unknown error", func(context.Context) error { return errors.New("bug") }, codes.Internal},
		{"deadline passed", func(context.Context) error { return context.DeadlineExceeded }, codes.DeadlineExceeded},
		{"panic", func(context.Context) error { panic("broken invariant") }, codes.Internal},
		{"default deadline", deadline(DefaultTimeout, DefaultTimeout/2), codes.OK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			answer = test.answer
			if err := call(context.Background()); status.Code(err) != test.code {
				t.Errorf("%v, want %s", err, test.code)
			}
		})
	}
	t.Run("panic is logged, not told", func(t *testing.T) {
		answer = func(context.Context) error { panic("broken twice") }
		if err := call(context.Background()); status.Convert(err).Message() != "CreateVolume panicked; the log says more" {
			t.Errorf("told: %v", err)
		}
		if text := logged.String(); !strings.Contains(text, "broken twice") || !strings.Contains(text, "server_test.go") {
			t.Errorf("log: %s", text)
		}
	})
	t.Run("caller's deadline", func(t *testing.T) {
		answer = deadline(time.Hour, DefaultTimeout)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := call(ctx); err != nil {
			t.Error(err)
		}
	})
	if text := logged.String(); strings.Contains(text, "very-secret") || !strings.Contains(text, "named") || !strings.Contains(text, "stripped") {
		t.Errorf("log: %s", text)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("socket: %v, %v", info, err)
	}
	if _, err := csipb.NewNodeClient(conn).NodeGetInfo(t.Context(), &csipb.NodeGetInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a service that isn't served: %v", err)
	}
	info, err := csipb.NewIdentityClient(conn).GetPluginInfo(t.Context(), &csipb.GetPluginInfoRequest{})
	if err != nil || info.GetName() != DriverName || info.GetVendorVersion() == "" {
		t.Errorf("%v, %v", info, err)
	}
	second, err := NewServer(ServerOptions{Socket: socket, Identity: NewIdentity(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Serve(t.Context()); !errors.Is(err, volume.ErrExists) {
		t.Errorf("a second server on the socket: %v", err)
	}
}

func TestServerRemovesAStaleSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	conn := serve(t, socket, ServerOptions{})
	resp, err := csipb.NewIdentityClient(conn).Probe(t.Context(), &csipb.ProbeRequest{}, grpc.WaitForReady(true))
	if err != nil || !resp.GetReady().GetValue() {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestServerRefusesBadSockets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := NewServer(ServerOptions{Socket: file, Identity: NewIdentity(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(t.Context()); !errors.Is(err, volume.ErrExists) {
		t.Errorf("a file in its place: %v", err)
	}
	for _, socket := range []string{"", "csi.sock", "unix://csi.sock", "/" + strings.Repeat("x", 107)} {
		if _, err := NewServer(ServerOptions{Socket: socket}); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("socket %q: %v", socket, err)
		}
	}
}
