package replica

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// TestNoAllocationsPerIO: the data path leaves nothing for the collector.
func TestNoAllocationsPerIO(t *testing.T) {
	s := newServer(t, Options{})
	for n, direct := range []bool{false, true} {
		create(t, s, uid(n+1), 4*mib)
		o := opening(uid(n+1), 1, 1)
		o.Direct = direct
		ses := open(t, s, o)
		whole := pattern(8192, 1)
		for name, io := range map[string]*block.IO{
			"write":            {Op: block.OpWrite, Len: 4096, Data: whole[:4096]},
			"unaligned memory": {Op: block.OpWrite, Len: 4096, Data: whole[512 : 512+4096]},
			"durable write":    {Op: block.OpWrite, FUA: true, Len: 4096, Data: whole[:4096]},
			"read":             {Op: block.OpRead, Len: 4096, Data: block.Alloc(4096)},
			"flush":            {Op: block.OpFlush},
			"trim":             {Op: block.OpTrim, Off: mib, Len: 4096},
		} {
			t.Run(fmt.Sprintf("%s direct=%v", name, direct), func(t *testing.T) {
				io.Done = func(_ *block.IO, err error) { must(t, err) }
				ses.Submit(io) // opens what is opened lazily
				if got := testing.AllocsPerRun(100, func() { ses.Submit(io) }); got >= 1 {
					t.Errorf("%v allocations", got)
				}
			})
		}
	}
}

// TestUnalignedNeighbours: writers of neighbouring bytes in the same 4 KiB don't
// undo each other, in direct mode too, and direct reads see them.
func TestUnalignedNeighbours(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	o := opening(uid(1), 1, 1)
	o.Direct = true
	ses := open(t, s, o)
	const piece = 100
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := w; (n+1)*piece <= 64<<10; n += 8 {
				io := block.IO{Op: block.OpWrite, Off: int64(n * piece), Len: piece, Data: bytes.Repeat([]byte{byte(n)}, piece), FUA: n%5 == 0}
				if err := block.Do(ses, &io); err != nil {
					t.Error(err)
					return
				}
				if n%16 == 0 { // a direct read of the whole in between
					if err := block.ReadAt(ses, block.Alloc(64<<10), 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	got := block.Alloc(64 << 10)
	must(t, block.ReadAt(ses, got, 0))
	for n := 0; (n+1)*piece <= len(got); n++ {
		if !bytes.Equal(got[n*piece:(n+1)*piece], bytes.Repeat([]byte{byte(n)}, piece)) {
			t.Fatalf("piece %d was undone", n)
		}
	}
}

func TestBlockStatus(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), 8*mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	must(t, block.WriteAt(ses, pattern(mib, 1), 2*mib))
	must(t, block.Flush(ses))
	tests := []struct {
		name   string
		off, n int64
		want   []block.Extent
	}{
		{"all", 0, 8 * mib, []block.Extent{{Len: 2 * mib, Hole: true}, {Len: mib}, {Len: 5 * mib, Hole: true}}},
		{"only data", 2 * mib, mib, []block.Extent{{Len: mib}}},
		{"only hole", 4 * mib, mib, []block.Extent{{Len: mib, Hole: true}}},
		{"inside data", 2*mib + 512, 1000, []block.Extent{{Len: 1000}}},
		{"nothing", 8 * mib, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ses.BlockStatus(tt.off, tt.n)
			if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v (%v), want %v", got, err, tt.want)
			}
		})
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {0, 8*mib + 1}, {9 * mib, 0}} {
		if _, err := ses.BlockStatus(bad[0], bad[1]); err == nil {
			t.Errorf("%v was answered", bad)
		}
	}
}

// TestFlushesShareATurn: flushes asked for while one runs are answered by one
// that began later, together.
func TestFlushesShareATurn(t *testing.T) {
	var f flusher
	f.init()
	entered, let := make(chan struct{}, 1), make(chan struct{})
	var mu sync.Mutex
	running, most, syncs := 0, 0, 0
	sync1 := func() error {
		mu.Lock()
		running++
		syncs++
		most = max(most, running)
		mu.Unlock()
		select {
		case entered <- struct{}{}:
		default:
		}
		<-let
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	}
	var wg sync.WaitGroup
	flush := func() {
		if err := f.flush(sync1); err != nil {
			t.Error(err)
		}
	}
	wg.Go(flush)
	<-entered
	for range 10 {
		wg.Go(flush)
	}
	close(let)
	wg.Wait()
	if most != 1 || syncs < 2 || syncs > 11 {
		t.Errorf("%d at a time, %d in all", most, syncs)
	}
}

func BenchmarkWrite4K(b *testing.B) {
	s := newServer(b, Options{})
	create(b, s, uid(1), 64*mib)
	ses := open(b, s, opening(uid(1), 1, 1))
	io := &block.IO{Op: block.OpWrite, Len: 4096, Data: pattern(4096, 1), Done: func(*block.IO, error) {}}
	b.ReportAllocs()
	for i := range b.N {
		io.Off = int64(i%16384) * 4096
		ses.Submit(io)
	}
}
