package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/internal/record"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// DefaultPrefix is where the objects are kept. The number in it is the layout's
// version; the objects have their own.
const DefaultPrefix = "/holdfast/v1/"

// How the connection notices a dead peer and comes back. Ten seconds is the
// shortest ping interval that every etcd server accepts with its defaults.
const (
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 4 * time.Second
	connectTimeout   = 3 * time.Second
	reconnectMin     = 100 * time.Millisecond
	reconnectMax     = 1 * time.Second
)

// Options say which store to use, and how.
type Options struct {
	// Endpoints are "host:port" or "http://host:port"; at least one.
	Endpoints []string
	// Prefix of all keys; DefaultPrefix when empty. It must end with "/".
	Prefix string
	// RequestTimeout bounds requests whose context has no deadline;
	// store.DefaultRequestTimeout when 0.
	RequestTimeout time.Duration
	Logger         *slog.Logger // nil means none
}

// Store is a connection to an etcd cluster.
type Store struct {
	client  *clientv3.Client
	prefix  string
	timeout time.Duration
	logger  *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the goroutines of watches

	mu     sync.Mutex
	closed bool // guarded by mu; no goroutine joins wg afterwards
}

var _ store.Store = (*Store)(nil)

// Connect connects to a store and waits until it has answered once, at most
// until ctx ends (or RequestTimeout): then ErrUnavailable. Wrong options are
// ErrInvalid. Later the connection is kept up by itself.
func Connect(ctx context.Context, opts Options) (*Store, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            opts.Endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxUnaryRetries:      1,            // one attempt: see the package comment
		Logger:               zap.NewNop(), // errors are returned, and it would log each of them again
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: connectTimeout,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the store at %s: %w: %w", strings.Join(opts.Endpoints, ","), volume.ErrInvalid, err)
	}
	s := &Store{client: client, prefix: opts.Prefix, timeout: opts.RequestTimeout, logger: opts.Logger}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.probe(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("connect to the store at %s: %w", strings.Join(opts.Endpoints, ","), err)
	}
	return s, nil
}

// complete checks the options and fills in what was left out.
func (o *Options) complete() error {
	if len(o.Endpoints) == 0 {
		return volume.Invalid("store endpoints", "", "at least one host:port")
	}
	for _, endpoint := range o.Endpoints {
		if err := checkEndpoint(endpoint); err != nil {
			return err
		}
	}
	o.Endpoints = slices.Clone(o.Endpoints)
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		return volume.Invalid("store prefix", o.Prefix, "a text that ends with \"/\"")
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = store.DefaultRequestTimeout
	}
	if o.RequestTimeout < 0 {
		return volume.Invalid("store request timeout", o.RequestTimeout.String(), "positive")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func checkEndpoint(endpoint string) error {
	hostPort := endpoint
	if u, err := url.Parse(endpoint); err == nil && u.Scheme == "http" {
		hostPort = u.Host
	}
	if host, port, err := net.SplitHostPort(hostPort); err != nil || host == "" || port == "" {
		return volume.Invalid("store endpoint", endpoint, "host:port or http://host:port")
	}
	return nil
}

// Volumes implements store.Store.
func (s *Store) Volumes() store.Objects[volume.ID, volume.Volume] {
	return &objects[volume.ID, volume.Volume]{Store: s, kind: record.Volumes}
}

// Nodes implements store.Store.
func (s *Store) Nodes() store.Objects[volume.NodeID, volume.Node] {
	return &objects[volume.NodeID, volume.Node]{Store: s, kind: record.Nodes}
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	if !first {
		return nil
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the store's connection: %w", err)
	}
	return nil
}

// probe asks something, to see whether anybody answers.
func (s *Store) probe(ctx context.Context) error {
	return s.do(ctx, "probe", func(ctx context.Context) error {
		return retryRead(ctx, func() error {
			_, err := s.client.Get(ctx, s.prefix, clientv3.WithKeysOnly())
			return err
		})
	})
}

// do runs one request under its deadline and says what its failure means.
func (s *Store) do(ctx context.Context, what string, request func(context.Context) error) error {
	if s.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, volume.ErrClosed)
	}
	ctx, cancel := store.WithRequestTimeout(ctx, s.timeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	if err := request(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, s.meaning(ctx, err))
	}
	return nil
}
