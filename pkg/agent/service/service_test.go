package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/replica"
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

// serve runs an agent until the test ends and returns its address.
func serve(t *testing.T, r Replicas) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	agentpb.RegisterAgentServer(g, New(r, slog.New(slog.NewTextHandler(t.Output(), nil))))
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return l.Addr().String()
}

func newClients(t *testing.T) *agent.Clients {
	c := agent.NewClients()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestRealReplicas goes through a replica's life over a real pool.
func TestRealReplicas(t *testing.T) {
	s, err := replica.NewServer(replica.Options{Pools: replica.Pools(pooltest.New(t)), Logger: pooltest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	addr := serve(t, s)
	c, ctx := newClients(t), within(t, patience)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wantErr := func(err, want error, text string) {
		t.Helper()
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), addr) {
			t.Fatalf("got %v, want %v with %q and the address", err, want, text)
		}
	}

	create := agent.CreateReplica{Volume: vol, UID: uid, Pool: "p", SizeBytes: 4 * mib, Guaranteed: true, Epoch: 2}
	must(c.CreateReplica(ctx, addr, create))
	must(c.CreateReplica(ctx, addr, create))
	_, err = c.OpenReplica(ctx, addr, agent.OpenReplica{Volume: vol, UID: uid, Epoch: 1, Session: 1, Holder: "n1"})
	wantErr(err, volume.ErrFenced, "epoch 2") // in which it was made
	opened, err := c.OpenReplica(ctx, addr, agent.OpenReplica{Volume: vol, UID: uid, Epoch: 3, Session: 2, Holder: "n1"})
	must(err)
	if opened.SizeBytes != 4*mib || opened.Incarnation == "" {
		t.Fatalf("opened %+v", opened)
	}
	must(c.GrowReplica(ctx, addr, agent.GrowReplica{UID: uid, Epoch: 3, Session: 2, SizeBytes: 8 * mib}))
	wantErr(c.GrowReplica(ctx, addr, agent.GrowReplica{UID: uid, Epoch: 2, Session: 9, SizeBytes: 16 * mib}), volume.ErrFenced, "")
	_, err = c.OpenReplica(ctx, addr, agent.OpenReplica{Volume: vol, UID: uid, Epoch: 2, Session: 1, Holder: "n2"})
	wantErr(err, volume.ErrFenced, "3") // names the epoch seen

	infos, err := c.ListReplicas(ctx, addr)
	must(err)
	if len(infos) != 1 {
		t.Fatalf("listed %+v", infos)
	}
	got := infos[0]
	if got.Volume != vol || got.UID != uid || got.Pool != "p" || got.SizeBytes != 8*mib || got.Epoch != 3 || got.Session != 2 || got.Failure != "" {
		t.Fatalf("listed %+v", got)
	}

	badRequests(t, c, addr)

	must(c.DeleteReplica(ctx, addr, vol, uid))
	must(c.DeleteReplica(ctx, addr, vol, uid))
	_, err = c.OpenReplica(ctx, addr, agent.OpenReplica{Volume: vol, UID: uid, Epoch: 4, Session: 1, Holder: "n1"})
	wantErr(err, volume.ErrNotFound, "")
}

// badRequests asks a real server for nonsense.
func badRequests(t *testing.T, c *agent.Clients, addr string) {
	const other = volume.UID("00000000-0000-4000-8000-000000000002")
	create := func(o agent.CreateReplica) func(context.Context) error {
		return func(ctx context.Context) error { return c.CreateReplica(ctx, addr, o) }
	}
	open := func(o agent.OpenReplica) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.OpenReplica(ctx, addr, o); return err }
	}
	tests := []struct {
		name string
		call func(context.Context) error
		want error
	}{
		{"create: volume climbs out", create(agent.CreateReplica{Volume: "../../etc", UID: other, Pool: "p", SizeBytes: mib}), volume.ErrInvalid},
		{"create: UID climbs out", create(agent.CreateReplica{Volume: vol, UID: "../x", Pool: "p", SizeBytes: mib}), volume.ErrInvalid},
		{"create: nothing given", create(agent.CreateReplica{}), volume.ErrInvalid},
		{"create: negative size", create(agent.CreateReplica{Volume: vol, UID: other, Pool: "p", SizeBytes: -1}), volume.ErrOutOfRange},
		{"create: zero size", create(agent.CreateReplica{Volume: vol, UID: other, Pool: "p"}), volume.ErrOutOfRange},
		{"create: no such pool", create(agent.CreateReplica{Volume: vol, UID: other, Pool: "q", SizeBytes: mib}), volume.ErrNotFound},
		{"create: larger than any pool", create(agent.CreateReplica{Volume: vol, UID: other, Pool: "p", SizeBytes: 1 << 60}), volume.ErrNoSpace},
		{"create: another size", create(agent.CreateReplica{Volume: vol, UID: uid, Pool: "p", SizeBytes: 2 * mib}), volume.ErrExists},
		{"open: epoch 0", open(agent.OpenReplica{Volume: vol, UID: uid, Session: 1, Holder: "n1"}), volume.ErrInvalid},
		{"open: session 0", open(agent.OpenReplica{Volume: vol, UID: uid, Epoch: 9, Holder: "n1"}), volume.ErrInvalid},
		{"open: holder", open(agent.OpenReplica{Volume: vol, UID: uid, Epoch: 9, Session: 1, Holder: "No/Node"}), volume.ErrInvalid},
		{"open: UID", open(agent.OpenReplica{Volume: vol, UID: "x", Epoch: 9, Session: 1, Holder: "n1"}), volume.ErrInvalid},
		{"open: no such replica", open(agent.OpenReplica{Volume: vol, UID: other, Epoch: 9, Session: 1, Holder: "n1"}), volume.ErrNotFound},
		{"delete: UID climbs out", func(ctx context.Context) error { return c.DeleteReplica(ctx, addr, vol, "../../x") }, volume.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(within(t, patience)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// fake is Replicas without replicas: every call gives err, after hold.
type fake struct {
	err  error
	hold func(context.Context)
	list []replica.Info

	mu   sync.Mutex
	seen []any // guarded by mu
}

func (f *fake) did(ctx context.Context, what any) error {
	f.mu.Lock()
	f.seen = append(f.seen, what)
	f.mu.Unlock()
	if f.hold != nil {
		f.hold(ctx)
	}
	return f.err
}

func (f *fake) Create(ctx context.Context, o replica.CreateOptions) error { return f.did(ctx, o) }

func (f *fake) Delete(ctx context.Context, id volume.ID, uid volume.UID) error {
	return f.did(ctx, []any{id, uid})
}

func (f *fake) Open(ctx context.Context, o replica.OpenOptions) (*replica.Session, error) {
	return nil, f.did(ctx, o)
}

func (f *fake) Grow(ctx context.Context, uid volume.UID, e volume.Epoch, s volume.Session, size int64) error {
	return f.did(ctx, []any{uid, e, s, size})
}

func (f *fake) List() []replica.Info { return f.list }

func (f *fake) Session(volume.UID, volume.Epoch, volume.Session) (*replica.Session, error) {
	return nil, f.err
}

// Every field arrives, and every error keeps its meaning.
func TestErrorsAndArgumentsCrossTheWire(t *testing.T) {
	for _, sentinel := range volume.Sentinels() {
		t.Run(sentinel.Error(), func(t *testing.T) {
			f := &fake{err: fmt.Errorf("replica 7: %w", sentinel)}
			addr := serve(t, f)
			c, ctx := newClients(t), within(t, patience)
			create := agent.CreateReplica{Volume: vol, UID: uid, Pool: "p", SizeBytes: 5, Guaranteed: true}
			open := agent.OpenReplica{Volume: vol, UID: uid, Epoch: 1<<63 + 1, Session: 1<<32 - 1, Holder: "n1", Direct: true}
			_, openErr := c.OpenReplica(ctx, addr, open)
			for _, err := range []error{
				openErr,
				c.CreateReplica(ctx, addr, create),
				c.DeleteReplica(ctx, addr, vol, uid),
				c.GrowReplica(ctx, addr, agent.GrowReplica{UID: uid, Epoch: 2, Session: 3, SizeBytes: 4}),
			} {
				if !errors.Is(err, sentinel) || !strings.Contains(err.Error(), "replica 7") {
					t.Errorf("got %v, want %v", err, sentinel)
				}
			}
			want := []any{
				replica.OpenOptions{Volume: vol, UID: uid, Epoch: 1<<63 + 1, Session: 1<<32 - 1, Holder: "n1", Direct: true},
				replica.CreateOptions(create),
				[]any{vol, uid},
				[]any{uid, volume.Epoch(2), volume.Session(3), int64(4)},
			}
			if !reflect.DeepEqual(f.seen, want) {
				t.Errorf("the server saw %+v, want %+v", f.seen, want)
			}
		})
	}
}

func TestListIsWhole(t *testing.T) {
	f := &fake{}
	var want []agent.Replica
	for i := range 2000 {
		failure := strings.Repeat("f", 100)
		f.list = append(f.list, replica.Info{
			Volume: vol, UID: uid, Pool: "p", SizeBytes: int64(i), AllocatedBytes: 1, Epoch: 2, Session: 3, Failure: failure,
		})
		want = append(want, agent.Replica{
			Volume: vol, UID: uid, Pool: "p", SizeBytes: int64(i), AllocatedBytes: 1, Epoch: 2, Session: 3, Failure: failure,
		})
	}
	addr := serve(t, f)
	got, err := newClients(t).ListReplicas(within(t, patience), addr)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%d replicas of %d, %v", len(got), len(want), err)
	}
}
