package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/store/storetest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// A watch and a client outlive an orderly restart of the server.
func TestRestartUnderWatch(t *testing.T) {
	dir := t.TempDir()
	first := startEmbedded(t, dir, "127.0.0.1:0")
	s := connect(t, etcd.Options{Endpoints: []string{first.Endpoint()}, RequestTimeout: time.Second})
	n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.Nodes().Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	awaitSynced(t, events)

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
	default:
		t.Error("closed, and not done")
	}
	n.Heartbeat = 1
	if _, err := s.Nodes().Update(t.Context(), n); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("update without a server: %v", err)
	}
	if _, err := s.Nodes().Get(t.Context(), "a"); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("get without a server: %v", err)
	}

	second := startEmbedded(t, dir, first.Endpoint())
	if second.Endpoint() != first.Endpoint() {
		t.Fatalf("restarted at %s, not %s", second.Endpoint(), first.Endpoint())
	}
	n = getAgain(t, s)
	n.Heartbeat = 2
	if _, err := s.Nodes().Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	for ev := range events {
		if ev.Object.Heartbeat == 2 {
			break
		}
	}
}

func awaitSynced(t *testing.T, events <-chan store.Event[volume.NodeID, volume.Node]) {
	t.Helper()
	for ev := range events {
		if ev.Kind == store.Synced {
			return
		}
	}
	t.Fatal("the watch ended")
}

// A store that lost its data (here: another directory behind the same address)
// is told to a watch as what it is: everything vanished.
func TestServerWithoutItsData(t *testing.T) {
	first := startEmbedded(t, t.TempDir(), "127.0.0.1:0")
	s := connect(t, etcd.Options{Endpoints: []string{first.Endpoint()}})
	n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
	for range 20 { // leave the revision far ahead of the new store's
		if err == nil {
			n, err = s.Nodes().Update(t.Context(), n)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.Nodes().Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	awaitSynced(t, events)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	startEmbedded(t, t.TempDir(), first.Endpoint())
	for ev := range events {
		if ev.Kind == store.Deleted && ev.Key == "a" {
			return
		}
	}
}

func TestEmbeddedOptions(t *testing.T) {
	tests := []struct {
		name, dir, listen string
	}{
		{"no directory", "", "127.0.0.1:0"},
		{"no address", "d", ""},
		{"no port", "d", "127.0.0.1"},
		{"all interfaces", "d", "0.0.0.0:0"},
		{"all interfaces, unnamed", "d", ":0"},
		{"not loopback", "d", "192.0.2.1:2379"},
		{"a name", "d", "example.com:2379"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dir != "" {
				tt.dir = filepath.Join(t.TempDir(), tt.dir)
			}
			_, err := etcd.StartEmbedded(t.Context(), etcd.EmbeddedOptions{Dir: tt.dir, ListenClient: tt.listen})
			if !errors.Is(err, volume.ErrInvalid) {
				t.Fatalf("got %v", err)
			}
			if _, err := os.Stat(tt.dir); err == nil {
				t.Error("the directory was made nevertheless")
			}
		})
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	_, err = etcd.StartEmbedded(t.Context(), etcd.EmbeddedOptions{Dir: dir, ListenClient: l.Addr().String(), Logger: testLogger(t)})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("got %v", err)
	}
	startEmbedded(t, dir, "127.0.0.1:0") // the failure has left no lock
}

// Damaged files are an error that names the place, not the end of the process.
func TestDamagedData(t *testing.T) {
	tests := []struct {
		name   string
		file   string // below the data directory
		damage func([]byte) []byte
	}{
		{"database's first pages", "etcd/member/snap/db", func(b []byte) []byte {
			copy(b, bytes.Repeat([]byte{0xA5}, 8192)) // both of bbolt's meta pages
			return b
		}},
		{"empty database", "etcd/member/snap/db", func([]byte) []byte { return []byte{'x'} }},
		{"a byte in the log", "etcd/member/wal/0000000000000000-0000000000000000.wal", func(b []byte) []byte {
			b[bytes.Index(b, []byte("agentAddr"))] ^= 1
			return b
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			e := startEmbedded(t, dir, "127.0.0.1:0")
			s := connect(t, etcd.Options{Endpoints: []string{e.Endpoint()}})
			if _, err := s.Nodes().Create(t.Context(), storetest.Node("a")); err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, tt.file)
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, tt.damage(data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			e, err = etcd.StartEmbedded(t.Context(), etcd.EmbeddedOptions{Dir: dir, ListenClient: "127.0.0.1:0", Logger: testLogger(t)})
			if err == nil {
				_ = e.Close()
			}
			if !errors.Is(err, volume.ErrCorrupt) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// When the store itself is full, changes are refused as "unavailable", which is
// not to be taken for a full pool, and reads go on.
func TestStoreIsFull(t *testing.T) {
	e := startEmbedded(t, t.TempDir(), "127.0.0.1:0")
	s := connect(t, etcd.Options{Endpoints: []string{e.Endpoint()}})
	n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
	if err != nil {
		t.Fatal(err)
	}
	alarm := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}
	if _, err := pb.NewMaintenanceClient(rawClient(t, e.Endpoint()).ActiveConnection()).Alarm(t.Context(), alarm); err != nil {
		t.Fatal(err)
	}
	_, err = s.Nodes().Update(t.Context(), n)
	if !errors.Is(err, volume.ErrUnavailable) || errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "database space exceeded") {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Nodes().Get(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}

func TestConnectFails(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	tests := []struct {
		name string
		opts etcd.Options
		want error
	}{
		{"nobody listens", etcd.Options{Endpoints: []string{gone.Addr().String()}}, volume.ErrUnavailable},
		{"nobody answers", etcd.Options{Endpoints: []string{silent.Addr().String()}}, volume.ErrUnavailable},
		{"no endpoint", etcd.Options{}, volume.ErrInvalid},
		{"empty endpoint", etcd.Options{Endpoints: []string{""}}, volume.ErrInvalid},
		{"no port", etcd.Options{Endpoints: []string{"localhost"}}, volume.ErrInvalid},
		{"another scheme", etcd.Options{Endpoints: []string{"ftp://localhost:1"}}, volume.ErrInvalid},
		{"prefix", etcd.Options{Endpoints: []string{"localhost:1"}, Prefix: "/no-slash"}, volume.ErrInvalid},
		{"timeout", etcd.Options{Endpoints: []string{"localhost:1"}, RequestTimeout: -1}, volume.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := etcd.Connect(ctx, tt.opts); !errors.Is(err, tt.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}
