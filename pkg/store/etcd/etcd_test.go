package etcd_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/store/storetest"
)

// startTimeout is how long an embedded store may take to start in a test.
const startTimeout = 60 * time.Second

func startEmbedded(t *testing.T, dir, listen string) *etcd.Embedded {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	e, err := etcd.StartEmbedded(ctx, etcd.EmbeddedOptions{Dir: dir, ListenClient: listen, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func testLogger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func connect(t *testing.T, opts etcd.Options) *etcd.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	opts.Logger = testLogger(t)
	s, err := etcd.Connect(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func rawClient(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// open makes subjects on one server, each with a prefix of its own. The
// connection under test goes through a proxy.
func open(endpoint string) func(t *testing.T) storetest.Subject {
	var count atomic.Int64
	return func(t *testing.T) storetest.Subject {
		prefix := fmt.Sprintf("/test-%d/", count.Add(1))
		proxy := storetest.NewProxy(t, endpoint)
		raw := rawClient(t, endpoint)
		return storetest.Subject{
			Store:       connect(t, etcd.Options{Endpoints: []string{proxy.Addr()}, Prefix: prefix, RequestTimeout: 2 * time.Second}),
			Other:       connect(t, etcd.Options{Endpoints: []string{"http://" + endpoint}, Prefix: prefix}),
			Cut:         proxy.Cut,
			LoseAnswers: proxy.LoseAnswers,
			Restore:     proxy.Restore,
			Break:       proxy.Break,
			Compact: func(t *testing.T) {
				resp, err := raw.Get(t.Context(), prefix)
				if err == nil {
					_, err = raw.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
				}
				if err != nil {
					t.Fatal(err)
				}
			},
			PutRaw: func(t *testing.T, path string, data []byte) {
				if _, err := raw.Put(t.Context(), prefix+path, string(data)); err != nil {
					t.Fatal(err)
				}
			},
		}
	}
}

func TestConformanceEmbedded(t *testing.T) {
	e := startEmbedded(t, t.TempDir(), "127.0.0.1:0")
	storetest.Run(t, open(e.Endpoint()))
}
