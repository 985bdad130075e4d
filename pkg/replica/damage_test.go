package replica

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func writeMeta(t *testing.T, dir string, change func(*meta)) {
	t.Helper()
	m := meta{Volume: vol, UID: uid(1), SizeBytes: mib, Epoch: 1, Session: 1, Holder: "a"}
	change(&m)
	data, err := pool.EncodeRecord(KindReplica, &m)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "meta.json"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(change(string(data))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var damages = []struct {
	name   string
	damage func(t *testing.T, dir string)
	want   error
	says   string
}{
	{"metadata missing", func(t *testing.T, d string) { must(t, os.Remove(d+"/meta.json")) }, volume.ErrCorrupt, "missing"},
	{"metadata empty", func(t *testing.T, d string) { must(t, os.Truncate(d+"/meta.json", 0)) }, volume.ErrCorrupt, ""},
	{"metadata truncated", func(t *testing.T, d string) { must(t, os.Truncate(d+"/meta.json", 100)) }, volume.ErrCorrupt, ""},
	{"metadata is zeroes", func(t *testing.T, d string) {
		edit(t, d+"/meta.json", func(s string) string { return strings.Repeat("\x00", len(s)) })
	}, volume.ErrCorrupt, ""},
	{"metadata changed", func(t *testing.T, d string) {
		edit(t, d+"/meta.json", func(s string) string { return strings.Replace(s, `"epoch": 1`, `"epoch": 0`, 1) })
	}, volume.ErrCorrupt, "checksum"},
	{"foreign metadata", func(t *testing.T, d string) {
		edit(t, d+"/meta.json", func(string) string { return `{"Size":1073741824,"Head":"volume-head-000.img"}` })
	}, volume.ErrFormatVersion, "not written by Holdfast"},
	{"a pool's record", func(t *testing.T, d string) {
		data, err := os.ReadFile(filepath.Join(d, "../../pool.json"))
		must(t, err)
		must(t, os.WriteFile(d+"/meta.json", data, 0o600))
	}, volume.ErrFormatVersion, "holdfast-pool"},
	{"newer format", func(t *testing.T, d string) {
		edit(t, d+"/meta.json", func(s string) string { return strings.Replace(s, `"format": 1`, `"format": 2`, 1) })
	}, volume.ErrFormatVersion, "format version 2"},
	{"metadata is a symlink out of the pool", func(t *testing.T, d string) {
		away := filepath.Join(t.TempDir(), "meta.json")
		must(t, os.WriteFile(away, nil, 0o600))
		must(t, os.Remove(d+"/meta.json"))
		must(t, os.Symlink(away, d+"/meta.json"))
	}, nil, "symbolic links"},
	{"another replica's metadata", func(t *testing.T, d string) {
		writeMeta(t, d, func(m *meta) { m.UID = uid(2) })
	}, volume.ErrCorrupt, string(uid(2))},
	{"uid climbs", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.UID = "../x" }) }, volume.ErrCorrupt, "uid"},
	{"volume climbs", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.Volume = "../x" }) }, volume.ErrCorrupt, "volume"},
	{"negative size", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.SizeBytes = -mib }) }, volume.ErrCorrupt, "sizeBytes"},
	{"odd size", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.SizeBytes++ }) }, volume.ErrCorrupt, "sizeBytes"},
	{"shrinking growth", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.GrowToBytes = mib }) }, volume.ErrCorrupt, "growToBytes"},
	{"session without epoch", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.Epoch = 0 }) }, volume.ErrCorrupt, "session"},
	{"epoch without holder", func(t *testing.T, d string) { writeMeta(t, d, func(m *meta) { m.Holder = "" }) }, volume.ErrCorrupt, "holder"},
	{"image missing", func(t *testing.T, d string) { must(t, os.Remove(d+"/data.img")) }, volume.ErrCorrupt, "missing"},
	{"image too short", func(t *testing.T, d string) { must(t, os.Truncate(d+"/data.img", mib-4096)) }, volume.ErrCorrupt, "1044480 bytes instead of 1048576"},
	{"image empty", func(t *testing.T, d string) { must(t, os.Truncate(d+"/data.img", 0)) }, volume.ErrCorrupt, "0 bytes"},
	{"image too long", func(t *testing.T, d string) { must(t, os.Truncate(d+"/data.img", 2*mib)) }, volume.ErrCorrupt, "2097152 bytes"},
	{"image of neither size of a growth", func(t *testing.T, d string) {
		writeMeta(t, d, func(m *meta) { m.GrowToBytes = 4 * mib })
		must(t, os.Truncate(d+"/data.img", 3*mib))
	}, volume.ErrCorrupt, "3145728 bytes"},
	{"image is a directory", func(t *testing.T, d string) {
		must(t, os.Remove(d+"/data.img"))
		must(t, os.Mkdir(d+"/data.img", 0o700))
	}, volume.ErrCorrupt, "not a regular file"},
	{"image is a symlink out of the pool", func(t *testing.T, d string) {
		away := filepath.Join(t.TempDir(), "data.img")
		must(t, os.WriteFile(away, make([]byte, mib), 0o600))
		must(t, os.Remove(d+"/data.img"))
		must(t, os.Symlink(away, d+"/data.img"))
	}, volume.ErrCorrupt, "not a regular file"},
	{"replica is a symlink out of the pool", func(t *testing.T, d string) {
		away := filepath.Join(t.TempDir(), "replica")
		must(t, os.MkdirAll(away, 0o700))
		must(t, os.RemoveAll(d))
		must(t, os.Symlink(away, d))
	}, volume.ErrCorrupt, "not a directory"},
	{"replica is a file", func(t *testing.T, d string) {
		must(t, os.RemoveAll(d))
		must(t, os.WriteFile(d, nil, 0o600))
	}, volume.ErrCorrupt, "not a directory"},
}

// TestDamagedReplicas: each damage is told, opened by nobody, and changed by
// nothing but Delete; its healthy neighbour is served.
func TestDamagedReplicas(t *testing.T) {
	p := pooltest.New(t)
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, Options{Pools: Pools(p)})
			create(t, s, uid(1), mib)
			create(t, s, uid(2), mib)
			open(t, s, opening(uid(1), 1, 1))
			must(t, s.Close())
			tt.damage(t, replicaDir(s, uid(1)))

			s = newServer(t, Options{Pools: Pools(p)})
			i, err := s.Get(uid(1))
			if err != nil || i.Failure == "" || !strings.Contains(i.Failure, tt.says) {
				t.Errorf("info %+v (%v), want a failure that says %q", i, err, tt.says)
			}
			_, err = s.Open(deadline(t), opening(uid(1), 2, 1))
			if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) {
				t.Errorf("open: got %v, want %v", err, tt.want)
			}
			if _, _, err := s.ClaimLoop(deadline(t), opening(uid(1), 2, 1)); err == nil {
				t.Error("claimed")
			}
			if err := s.Create(deadline(t), CreateOptions{Volume: vol, UID: uid(1), Pool: "p", SizeBytes: mib}); err == nil {
				t.Error("created over it")
			}
			open(t, s, opening(uid(2), 2, 1))
			for _, u := range []volume.UID{uid(1), uid(2)} {
				must(t, s.Delete(deadline(t), vol, u))
			}
			if left := entries(t, p.ReplicasDir()); len(left) > 0 {
				t.Errorf("left after Delete: %v", left)
			}
		})
	}
}

func TestDamageBehindTheServersBack(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	must(t, os.Truncate(replicaDir(s, uid(1))+"/data.img", 4096))
	_, err := s.Open(deadline(t), opening(uid(1), 1, 1))
	wantErr(t, "open", err, volume.ErrCorrupt)
}

func FuzzDecodeMeta(f *testing.F) {
	good, err := pool.EncodeRecord(KindReplica, &meta{Volume: vol, UID: uid(1), SizeBytes: mib, Epoch: 1, Session: 1, Holder: "a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"kind":"holdfast-replica","format":1,"crc32c":"00000000","body":{}}`))
	f.Add([]byte(`{"kind":"holdfast-replica","format":18446744073709551616}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m meta
		err := pool.DecodeRecord(KindReplica, data, &m)
		if err == nil {
			if m.Check() != nil {
				t.Fatalf("accepted %+v", m)
			}
			return
		}
		if !errors.Is(err, volume.ErrCorrupt) && !errors.Is(err, volume.ErrFormatVersion) {
			t.Fatalf("an error of no known kind: %v", err)
		}
	})
}

// TestTwins: a pool's files were copied to another pool; nobody can tell which
// one is right.
func TestTwins(t *testing.T) {
	a := pooltest.New(t)
	b := pooltest.Open(t, pool.Options{Name: "q", Path: pooltest.Mount(t, pooltest.DefaultImageBytes)})
	s := newServer(t, Options{Pools: Pools(a, b)})
	create(t, s, uid(1), mib)
	must(t, s.Close())
	must(t, os.CopyFS(filepath.Join(b.ReplicasDir(), string(uid(1))), os.DirFS(replicaDir(s, uid(1)))))
	s = newServer(t, Options{Pools: Pools(a, b)})
	_, err := s.Open(deadline(t), opening(uid(1), 1, 1))
	wantErr(t, "open", err, volume.ErrCorrupt)
	if list := s.List(); len(list) != 1 || !strings.Contains(list[0].Failure, "pools p and q") {
		t.Errorf("list %+v", list)
	}
	if _, err := NewServer(Options{Pools: Pools(a, a)}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("one pool twice: %v", err)
	}
}
