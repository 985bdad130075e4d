package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ServerOptions say what to serve where.
type ServerOptions struct {
	// Socket is the path of the unix socket, or "unix://" and the path. Its
	// directory must exist.
	Socket     string
	Identity   csipb.IdentityServer
	Controller csipb.ControllerServer // nil: not served
	Node       csipb.NodeServer       // nil: not served
	Logger     *slog.Logger           // nil: none
}

// Server offers CSI services on a unix socket.
type Server struct {
	o    ServerOptions
	path string
	log  *slog.Logger
}

const (
	// DefaultTimeout bounds a call whose caller set no deadline.
	DefaultTimeout = 2 * time.Minute
	// stopTimeout is how long calls under way may take when the server stops.
	stopTimeout = 10 * time.Second
	// maxSocketBytes is the longest path that fits a sockaddr_un.
	maxSocketBytes = 107
	// socketMode lets root and its group in: whoever may connect may do all.
	socketMode = 0o660
)

// NewServer checks the options. ErrInvalid for a path that can't be a socket's.
func NewServer(o ServerOptions) (*Server, error) {
	const scheme = "unix://"
	path := o.Socket
	if len(path) > len(scheme) && path[:len(scheme)] == scheme {
		path = path[len(scheme):]
	}
	if !filepath.IsAbs(path) || len(path) > maxSocketBytes {
		return nil, volume.Invalid("csi-socket", o.Socket, fmt.Sprintf("an absolute path of at most %d bytes", maxSocketBytes))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, path: path, log: o.Logger}, nil
}

// Serve listens and answers until ctx ends, lets the calls under way finish (up
// to ten seconds), and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	listener, err := listen(ctx, s.path)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(s.logCalls, s.recoverPanics, convertErrors, withDeadline))
	csipb.RegisterIdentityServer(server, s.o.Identity)
	if s.o.Controller != nil {
		csipb.RegisterControllerServer(server, s.o.Controller)
	}
	if s.o.Node != nil {
		csipb.RegisterNodeServer(server, s.o.Node)
	}
	s.log.Info("CSI socket is open", "socket", s.path)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", s.path, err)
	case <-ctx.Done():
	}
	stop(server)
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.path, err)
	}
	return nil
}

// stop lets calls finish, but not for ever.
func stop(server *grpc.Server) {
	done := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		server.Stop()
		<-done
	}
}

// listen opens the socket. One that a dead process left is removed; one behind
// which somebody answers is left alone, and so is anything that isn't a socket.
func listen(ctx context.Context, path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("socket: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("%s exists and is not a socket: %w", path, volume.ErrExists)
	default:
		dialer := net.Dialer{Timeout: time.Second}
		if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("%s is served by another process: %w", path, volume.ErrExists), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale socket: %w", err)
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the socket: %w", err), listener.Close())
	}
	return listener, nil
}
