package pool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const uid = "00000000-0000-4000-8000-00000000000"

func TestOptionsAreChecked(t *testing.T) {
	tests := []struct {
		name string
		o    pool.Options
		want error
	}{
		{"no name", pool.Options{Path: "/x"}, volume.ErrInvalid},
		{"name climbs", pool.Options{Name: "../x", Path: "/x"}, volume.ErrInvalid},
		{"long name", pool.Options{Name: strings.Repeat("a", 64), Path: "/x"}, volume.ErrInvalid},
		{"relative path", pool.Options{Name: "p", Path: "x"}, volume.ErrInvalid},
		{"unclean path", pool.Options{Name: "p", Path: "/x/../y"}, volume.ErrInvalid},
		{"negative reserve", pool.Options{Name: "p", Path: "/x", ReserveBytes: -1}, volume.ErrInvalid},
		{"over-provisioning below 1", pool.Options{Name: "p", Path: "/x", OverProvision: 0.5}, volume.ErrInvalid},
		{"missing directory", pool.Options{Name: "p", Path: "/nonexistent-holdfast"}, volume.ErrNotFound},
		{"wrong file system", pool.Options{Name: "p", Path: "/proc"}, volume.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := pool.Open(context.Background(), tt.o)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if p != nil {
				t.Error("a pool was returned")
			}
		})
	}
}

func TestIdentitySurvives(t *testing.T) {
	dir := pooltest.Mount(t, pool.MinImageBytes)
	p := pooltest.Open(t, pool.Options{Name: "fast", Path: dir})
	first := p.UID()
	// The lock holds against everyone, this process too.
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := pool.Open(ctx, pool.Options{Name: "fast", Path: dir}); !errors.Is(err, volume.ErrPrecondition) {
		t.Fatalf("opened twice: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.ReplicasDir(), pool.TempPrefix+"new-x"), 0o700); err != nil {
		t.Fatal(err)
	}
	p = pooltest.Open(t, pool.Options{Name: "fast", Path: dir})
	if p.UID() != first {
		t.Errorf("identity was %s, is %s", first, p.UID())
	}
	if left := names(t, p.ReplicasDir()); len(left) != 0 {
		t.Errorf("not swept: %v", left)
	}
	if err := p.Health(); err != nil {
		t.Error(err)
	}
	if r := p.Report(); !r.Healthy || r.UID != first || r.Capacity == 0 || r.Free == 0 || r.Reserve < 64<<20 || r.OverProvision != pool.DefaultOverProvision {
		t.Errorf("report %+v", r)
	}
}

func TestForeignDirectoriesAreRefused(t *testing.T) {
	dir := pooltest.Mount(t, pool.MinImageBytes)
	p := pooltest.Open(t, pool.Options{Name: "fast", Path: dir})
	whole, err := os.ReadFile(filepath.Join(dir, "pool.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, poolName string
		identity       []byte // nil: none
		extra          string
		want           error
	}{
		{"another name", "slow", whole, "", volume.ErrPrecondition},
		{"truncated", "fast", whole[:len(whole)/2], "", volume.ErrCorrupt},
		{"empty", "fast", []byte{}, "", volume.ErrCorrupt},
		{"newer format", "fast", []byte(strings.Replace(string(whole), `"format": 1`, `"format": 2`, 1)), "", volume.ErrFormatVersion},
		{"foreign", "fast", []byte(`{"id":"x"}`), "", volume.ErrFormatVersion},
		{"changed", "fast", []byte(strings.Replace(string(whole), `"name": "fast"`, `"name": "slow"`, 1)), "", volume.ErrCorrupt},
		{"identity lost", "fast", nil, "replicas/" + uid + "1", volume.ErrCorrupt},
		{"somebody's data", "fast", nil, "photos", volume.ErrPrecondition},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range names(t, dir) {
				if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Join(dir, "replicas", tt.extra), 0o700); tt.extra != "photos" && err != nil {
				t.Fatal(err)
			}
			if tt.extra != "" {
				if err := os.MkdirAll(filepath.Join(dir, tt.extra), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if tt.identity != nil {
				if err := os.WriteFile(filepath.Join(dir, "pool.json"), tt.identity, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := names(t, dir)
			if _, err := pool.Open(context.Background(), pool.Options{Name: tt.poolName, Path: dir}); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if after := names(t, dir); !slices.Equal(before, after) {
				t.Errorf("the directory was changed: %v, was %v", after, before)
			}
			if tt.identity != nil {
				if now, err := os.ReadFile(filepath.Join(dir, "pool.json")); err != nil || string(now) != string(tt.identity) {
					t.Errorf("pool.json was changed (%v)", err)
				}
			}
		})
	}
}

// TestEstablishing kills the making of a pool at every file operation and
// repeats it.
func TestEstablishing(t *testing.T) {
	dir := pooltest.Mount(t, pool.MinImageBytes)
	rec := &pooltest.Recorder{Root: dir}
	for n := 1; ; n++ {
		rec.KillAt(n)
		p, err := pool.Open(context.Background(), pool.Options{Name: "fast", Path: dir, FS: rec, Logger: pooltest.Logger(t)})
		if err == nil {
			want := []string{
				"remove .probe-a", "remove .probe-b", "mkdir replicas", "create pool.json.tmp", "write pool.json.tmp",
				"sync pool.json.tmp", "rename pool.json.tmp -> pool.json", "syncdir .",
			}
			if got := rec.Take(); !slices.Equal(got, want) {
				t.Errorf("operations\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, pooltest.ErrKilled) || n > 50 {
			t.Fatalf("killed at %d: %v", n, err)
		}
		p = pooltest.Open(t, pool.Options{Name: "fast", Path: dir})
		if got := names(t, dir); !slices.Equal(got, []string{"pool.json", "replicas"}) {
			t.Fatalf("killed at %d, opened again: there is %v", n, got)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range names(t, dir) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
