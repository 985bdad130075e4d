package replica

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// tiny makes a server with one tiny pool.
func tiny(t *testing.T) (*Server, *pool.Pool) {
	p := pooltest.Open(t, pool.Options{Name: "p", Path: pooltest.Mount(t, pool.MinImageBytes), ReserveBytes: 20 * mib, OverProvision: 10})
	return newServer(t, Options{Pools: Pools(p)}), p
}

func headroom(t *testing.T, p *pool.Pool) int64 {
	t.Helper()
	st, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st.Headroom()
}

// await polls until cond holds: file systems give back space in their own time.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestFullPool: a write that finds no space is refused, nothing is marked, and it
// goes through when space has returned; what was acknowledged is all there.
func TestFullPool(t *testing.T) {
	for name, direct := range map[string]bool{"page cache": false, "direct": true} {
		t.Run(name, func(t *testing.T) {
			s, p := tiny(t)
			create(t, s, uid(1), 1<<30)
			create(t, s, uid(2), 1<<30)
			o := opening(uid(1), 1, 1)
			o.Direct = direct
			ses := open(t, s, o)
			filler := open(t, s, opening(uid(2), 1, 1))
			fill := int64(0)
			for ; fill < 100*mib; fill += mib {
				must(t, block.WriteAt(filler, pattern(mib, 0), fill))
			}
			written := int64(0)
			var full error
			for ; full == nil; written += mib {
				full = block.WriteAt(ses, pattern(mib, byte(written>>20)), written)
			}
			written -= mib
			wantErr(t, "the write that found no space", full, volume.ErrNoSpace)
			if st, err := p.Stats(); err != nil || st.Free < st.Reserve-mib || written < 50*mib {
				t.Errorf("full after %d bytes with %d free (%v)", written, st.Free, err)
			}
			// A file system on the volume can still overwrite, flush, read and trim.
			must(t, block.WriteAt(ses, pattern(mib, 0), 0))
			must(t, block.Flush(ses))
			if i, err := s.Get(uid(1)); err != nil || i.Failure != "" {
				t.Errorf("info %+v (%v)", i, err)
			}
			wantErr(t, "still no space", block.WriteAt(ses, pattern(mib, byte(written>>20)), written), volume.ErrNoSpace)
			wantErr(t, "zeroes that keep their space", block.Do(ses, &block.IO{Op: block.OpWriteZeroes, NoHole: true, Off: written, Len: mib}), volume.ErrNoSpace)

			must(t, block.Do(filler, &block.IO{Op: block.OpTrim, Len: fill}))
			await(t, "the write goes through", func() bool {
				err := block.WriteAt(ses, pattern(mib, byte(written>>20)), written)
				if err != nil && !errors.Is(err, volume.ErrNoSpace) {
					t.Fatal(err)
				}
				return err == nil
			})
			must(t, block.Flush(ses))
			for off := int64(0); off <= written; off += mib {
				got := make([]byte, mib)
				must(t, block.ReadAt(ses, got, off))
				if string(got) != string(pattern(mib, byte(off>>20))) {
					t.Fatalf("bytes at %d were lost", off)
				}
			}
		})
	}
}

// TestSmallWritesFillThePool: random 4 KiB writes, as a file system makes them,
// must meet the pool's refusal too, never the kernel's.
func TestSmallWritesFillThePool(t *testing.T) {
	s, p := tiny(t)
	create(t, s, uid(1), 1<<30)
	img := withFaults(s)
	ses := open(t, s, opening(uid(1), 1, 1))
	var kernel atomic.Int64
	img.set(func(op string) error {
		if op == "write" {
			kernel.Add(1)
		}
		return nil
	})
	rnd := rand.New(rand.NewPCG(1, 2))
	buf := pattern(4096, 1)
	for {
		before := kernel.Load()
		err := block.WriteAt(ses, buf, rnd.Int64N(1<<30/4096)*4096)
		if err == nil {
			continue
		}
		wantErr(t, "the write that found no space", err, volume.ErrNoSpace)
		if kernel.Load() != before {
			t.Error("the kernel was asked, and had no space")
		}
		break
	}
	must(t, block.Flush(ses))
	if st, err := p.Stats(); err != nil || st.Free < st.Reserve/2 {
		t.Errorf("the reserve was eaten: %+v (%v)", st, err)
	}
}

func TestTrimGivesSpaceBack(t *testing.T) {
	s, p := tiny(t)
	create(t, s, uid(1), 1<<30)
	ses := open(t, s, opening(uid(1), 1, 1))
	empty := headroom(t, p)
	for off := int64(0); off < 64*mib; off += mib {
		must(t, block.WriteAt(ses, pattern(mib, 1), off))
	}
	must(t, block.Flush(ses))
	if now := headroom(t, p); now > empty-63*mib {
		t.Errorf("headroom %d, was %d", now, empty)
	}
	must(t, block.Do(ses, &block.IO{Op: block.OpTrim, Len: 32 * mib}))
	must(t, block.Do(ses, &block.IO{Op: block.OpWriteZeroes, Off: 32 * mib, Len: 32 * mib}))
	await(t, "all space is back", func() bool { return headroom(t, p) > empty-2*mib })
	if i, err := s.Get(uid(1)); err != nil || i.AllocatedBytes > mib {
		t.Errorf("info %+v (%v)", i, err)
	}
	for off := int64(0); off < 64*mib; off += mib {
		must(t, block.WriteAt(ses, pattern(mib, 1), off))
	}
	must(t, block.Flush(ses))
	must(t, s.Delete(deadline(t), vol, uid(1)))
	await(t, "a deleted replica's space is back", func() bool { return headroom(t, p) > empty-2*mib })
}

// TestGuaranteedReplicaIsNeverRefused: thin neighbours leave it its room, also
// when it is written past the server, by a loop device.
func TestGuaranteedReplicaIsNeverRefused(t *testing.T) {
	s, p := tiny(t)
	create(t, s, uid(1), 1<<30)
	const size = 128 * mib
	guaranteed := CreateOptions{Volume: vol, UID: uid(2), Pool: "p", SizeBytes: size, Guaranteed: true}
	must(t, s.Create(deadline(t), guaranteed))
	over := guaranteed
	over.UID = uid(3)
	wantErr(t, "a second guarantee", s.Create(deadline(t), over), volume.ErrNoSpace)
	s = restart(t, s) // the guarantee survives
	thin := open(t, s, opening(uid(1), 1, 1))
	fill := func() {
		t.Helper()
		for off := int64(0); ; off += mib {
			err := block.WriteAt(thin, pattern(mib, 1), off)
			if errors.Is(err, volume.ErrNoSpace) {
				return
			}
			must(t, err)
		}
	}
	path, release, err := s.ClaimLoop(deadline(t), opening(uid(2), 1, 1))
	must(t, err)
	defer release()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	for off := int64(0); off < size; off += mib {
		if off%(32*mib) == 0 {
			fill()
		}
		if _, err := f.WriteAt(pattern(mib, 2), off); err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	must(t, f.Sync())
	if st, err := p.Stats(); err != nil || st.Free < st.Reserve-2*mib || st.Unallocated > mib {
		t.Errorf("stats %+v (%v)", st, err)
	}
	wantErr(t, "grow the guarantee without room", s.Grow(deadline(t), uid(2), 1, 1, 2*size), volume.ErrNoSpace)
}
