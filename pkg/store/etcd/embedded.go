package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Settings of the embedded server. The data are small: a volume takes about one
// kilobyte, and the history is what grows, by every heartbeat.
const (
	// quotaBytes bounds the database; beyond it etcd refuses changes.
	quotaBytes = 1 << 30
	// historyKept is how long superseded versions are kept. Nobody reads them;
	// watches start over after a compaction.
	historyKept = 10 * time.Minute
	// memberName names the only member.
	memberName = "holdfast"
	// peerURL is required in the member's record, and nobody listens there: a
	// single member has no peers.
	peerURL = "http://127.0.0.1:2380"
)

// EmbeddedOptions configure an embedded store.
type EmbeddedOptions struct {
	// Dir keeps the data (in Dir/etcd) and a lock file; it is made if missing.
	// A store stopped in any way, kill -9 included, starts again from it.
	Dir string
	// ListenClient is the "host:port" to listen on. The store has no
	// authentication, so only loopback addresses are allowed.
	ListenClient string
	Logger       *slog.Logger // nil means none
}

// Embedded is a running single-member etcd server.
type Embedded struct {
	etcd     *embed.Etcd
	lock     *fileutil.LockedFile
	endpoint string

	streams   context.Context // ends with Close; no watch outlives it
	closing   context.CancelFunc
	closeOnce sync.Once
	done      chan struct{} // closed when the server has ended
	err       error         // why, if not by Close; read after done
}

// StartEmbedded starts a store and returns when it serves. Every change is
// fsynced before it is answered. Errors: ErrInvalid for the options,
// ErrPrecondition when another process uses Dir, ErrCorrupt when its content
// can't be used, ErrUnavailable when it is not ready before ctx ends.
func StartEmbedded(ctx context.Context, opts EmbeddedOptions) (*Embedded, error) {
	cfg, err := opts.config()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start the store: %w", err)
	}
	lock, err := fileutil.TryLockFile(filepath.Join(opts.Dir, "lock"), os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("start the store: %s is in use by another process: %w", opts.Dir, volume.ErrPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("start the store: lock %s: %w", opts.Dir, err)
	}
	if err := checkDatabase(cfg.Dir); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("start the store in %s: %w", opts.Dir, err)
	}
	e := &Embedded{lock: lock, done: make(chan struct{})}
	e.streams, e.closing = context.WithCancel(context.Background())
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(e.streams, opts.Logger))
	cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(e.boundStream)}
	if e.etcd, err = start(cfg); err != nil {
		e.closing()
		_ = lock.Close()
		return nil, fmt.Errorf("start the store in %s: %w", opts.Dir, err)
	}
	e.endpoint = e.etcd.Clients[0].Addr().String()
	go e.supervise()
	select {
	case <-e.etcd.Server.ReadyNotify():
		return e, nil
	case <-e.done:
		return nil, fmt.Errorf("start the store in %s: %w: %w", opts.Dir, volume.ErrUnavailable, e.Close())
	case <-ctx.Done():
		_ = e.Close()
		return nil, fmt.Errorf("start the store in %s: %w: %w", opts.Dir, volume.ErrUnavailable, ctx.Err())
	}
}

// config checks the options and makes etcd's of them.
func (o *EmbeddedOptions) config() (*embed.Config, error) {
	if o.Dir == "" {
		return nil, volume.Invalid("store directory", o.Dir, "a path")
	}
	host, _, err := net.SplitHostPort(o.ListenClient)
	if err != nil {
		return nil, volume.Invalid("store listen address", o.ListenClient, "host:port")
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, volume.Invalid("store listen address", o.ListenClient, "on loopback: the store has no authentication")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	client := url.URL{Scheme: "http", Host: o.ListenClient}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, fmt.Errorf("peer URL: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name = memberName
	cfg.Dir = filepath.Join(o.Dir, "etcd")
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
	cfg.InitialCluster = memberName + "=" + peerURL
	cfg.InitialClusterToken = "holdfast"
	cfg.EnableGRPCGateway = false
	cfg.QuotaBackendBytes = quotaBytes
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = historyKept.String()
	cfg.UnsafeNoFsync = false
	return cfg, nil
}

// checkDatabase opens the database, if there is one, and closes it again: etcd
// itself would panic in a goroutine of its own, which ends the process.
func checkDatabase(dir string) error {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("database %s: %w: %w", path, volume.ErrCorrupt, err)
	}
	return db.Close()
}

// start runs etcd's start, which panics on a log that it can't use. What it had
// opened by then stays open until the process ends, which is what comes next.
func start(cfg *embed.Config) (etcd *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			etcd, err = nil, fmt.Errorf("%v: %w", r, volume.ErrCorrupt)
		}
	}()
	etcd, err = embed.StartEtcd(cfg)
	if slices.ContainsFunc(damage, func(e error) bool { return errors.Is(err, e) }) {
		err = fmt.Errorf("%w: %w", volume.ErrCorrupt, err)
	}
	return etcd, err
}

// damage is what etcd says of a log that fails its checksums or has gaps.
var damage = []error{
	wal.ErrCRCMismatch, wal.ErrMetadataConflict, wal.ErrFileNotFound, wal.ErrSnapshotMismatch,
	wal.ErrSnapshotNotFound, wal.ErrSliceOutOfRange, snap.ErrCRCMismatch, snap.ErrEmptySnapshot,
}

// boundStream ends streams with Close. Watches never end by themselves, and etcd
// would wait seconds for them before it stops.
func (e *Embedded) boundStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(e.streams, cancel)
	defer stop()
	return handler(srv, boundedStream{ServerStream: stream, ctx: ctx})
}

// boundedStream is a stream with another context.
type boundedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s boundedStream) Context() context.Context { return s.ctx }

// supervise waits for the server's end, and notes why if nobody asked for it.
func (e *Embedded) supervise() {
	defer close(e.done)
	select {
	case err := <-e.etcd.Err():
		if err != nil && e.streams.Err() == nil {
			e.err = fmt.Errorf("the store ended: %w", err)
		}
	case <-e.etcd.Server.StopNotify():
	}
}

// Endpoint is the "host:port" to give to Connect.
func (e *Embedded) Endpoint() string { return e.endpoint }

// Done is closed when the server has ended, by Close or by itself.
func (e *Embedded) Done() <-chan struct{} { return e.done }

// Close stops the server and waits for its end. It returns why the server had
// ended before, if it had. It may be called twice.
func (e *Embedded) Close() error {
	e.closeOnce.Do(func() {
		e.closing()
		e.etcd.Close()
		<-e.done
		_ = e.lock.Close()
	})
	<-e.done
	return e.err
}
