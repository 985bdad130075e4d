package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const mib = 1 << 20

func stats(t *testing.T, p *pool.Pool) pool.Stats {
	t.Helper()
	s, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClaimsAreLimited(t *testing.T) {
	dir := pooltest.Mount(t, pool.MinImageBytes)
	p := pooltest.Open(t, pool.Options{Name: "fast", Path: dir, ReserveBytes: 50 * mib, OverProvision: 2})
	usable := stats(t, p).Usable()
	headroom := stats(t, p).Headroom()
	steps := []struct {
		name  string
		uid   volume.UID
		claim pool.Claim
		want  error
	}{
		{"more than all", uid + "1", pool.Claim{Bytes: 2*usable + 1}, volume.ErrNoSpace},
		{"guarantee more than there is", uid + "1", pool.Claim{Bytes: usable + 1, Guaranteed: true}, volume.ErrNoSpace},
		{"guarantee more than is free", uid + "1", pool.Claim{Bytes: headroom + 1, Guaranteed: true}, volume.ErrNoSpace},
		{"thin, all of the usable", uid + "1", pool.Claim{Bytes: usable}, nil},
		{"repeated", uid + "1", pool.Claim{Bytes: usable}, nil},
		{"guarantee 100 MiB", uid + "2", pool.Claim{Bytes: 100 * mib, Guaranteed: true}, nil},
		{"guarantee the rest and one more", uid + "3", pool.Claim{Bytes: headroom - 100*mib + 1, Guaranteed: true}, volume.ErrNoSpace},
		{"grow the guarantee beyond", uid + "2", pool.Claim{Bytes: headroom + 1, Guaranteed: true}, volume.ErrNoSpace},
		{"grow the guarantee", uid + "2", pool.Claim{Bytes: 110 * mib, Guaranteed: true}, nil},
		{"thin beyond over-provisioning", uid + "4", pool.Claim{Bytes: usable}, volume.ErrNoSpace},
	}
	for _, s := range steps {
		if err := p.Claim(s.uid, s.claim); !errors.Is(err, s.want) {
			t.Fatalf("%s: got %v, want %v", s.name, err, s.want)
		}
	}
	if s := stats(t, p); s.Promised != usable+110*mib || s.Guaranteed != 110*mib || s.Unallocated != 110*mib {
		t.Errorf("stats %+v", s)
	}
	p.Release(uid + "2")
	if s := stats(t, p); s.Promised != usable || s.Guaranteed != 0 || s.Unallocated != 0 {
		t.Errorf("stats after release %+v", s)
	}
}

func TestAdmitKeepsTheReserveAndTheGuarantees(t *testing.T) {
	dir := pooltest.Mount(t, pool.MinImageBytes)
	p := pooltest.Open(t, pool.Options{Name: "fast", Path: dir, ReserveBytes: 20 * mib, OverProvision: 2})
	if err := p.Claim(uid+"1", pool.Claim{Bytes: 60 * mib, Guaranteed: true, Allocated: func() int64 { return 10 * mib }}); err != nil {
		t.Fatal(err)
	}
	// Really written, as the budget between two looks must not matter.
	f, err := os.Create(filepath.Join(dir, "replicas", ".tmp-filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	written := int64(0)
	for {
		if err := p.Admit(mib); err != nil {
			if !errors.Is(err, volume.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
		if err := unix.Fallocate(int(f.Fd()), 0, written, mib); err != nil {
			t.Fatalf("the file system is full after %d bytes, before Admit said so: %v", written, err)
		}
		written += mib
	}
	s := stats(t, p)
	if room := s.Headroom(); room < 0 || room >= 2*mib {
		t.Errorf("refused with %d bytes of headroom: %+v", room, s)
	}
	if s.Free < 70*mib {
		t.Errorf("only %d bytes are left for the reserve and the guarantee", s.Free)
	}
	if err := p.Admit(1 << 50); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("a petabyte: %v", err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := p.Admit(mib); err != nil {
		t.Errorf("space is back: %v", err)
	}
}

func TestAdmitAllocatesNothing(t *testing.T) {
	p := pooltest.New(t)
	if n := testing.AllocsPerRun(1000, func() {
		if err := p.Admit(4096); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations per call", n)
	}
}
