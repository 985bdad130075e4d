package replica

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// TestDirtBound: what may be dirty follows the rate of the rounds.
func TestDirtBound(t *testing.T) {
	type round struct {
		n    int64 // bytes
		took time.Duration
	}
	cases := []struct {
		name           string
		rounds         []round
		trigger, limit int64 // MiB
	}{
		{"nothing measured", nil, 32, 1024},
		{"nothing to measure", []round{{0, time.Second}, {32 * mib, 0}}, 32, 1024},
		{"a flush has written it", []round{{64 * mib, 3 * time.Second}, {4096, time.Second}, {2*mib - 1, 20 * time.Second}}, 32, 85},
		{"as fast as was thought", []round{{64 * mib, 3 * time.Second}}, 32, 85},
		{"a slow disk", []round{{32 * mib, 4 * time.Second}}, 12, 32},
		{"a disk that seeks", []round{{32 * mib, 40 * time.Second}}, 2, 4},
		{"slow after it was fast", []round{{96 * mib, time.Second / 2}, {96 * mib, 3 * time.Second}}, 48, 128},
		{"one fast round", []round{{32 * mib, time.Second / 10}}, 48, 128},
		{"many fast rounds", []round{
			{32 * mib, time.Second / 10}, {32 * mib, time.Second / 10}, {32 * mib, time.Second / 10}, {32 * mib, time.Second / 10},
			{32 * mib, time.Second / 10}, {32 * mib, time.Second / 10}, {32 * mib, time.Second / 10}, {32 * mib, time.Second / 10},
		}, 96, 1024},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := dirtBound{first: 32 * mib, most: 1024 * mib}
			for _, r := range c.rounds {
				b.wrote(r.n, r.took)
				if b.limit() < b.trigger() || b.limit() > b.most {
					t.Fatalf("after %v: trigger %d, limit %d", r, b.trigger(), b.limit())
				}
			}
			if got, want := b.trigger()/mib, c.trigger; got != want {
				t.Errorf("trigger %d MiB, want %d", got, want)
			}
			if got, want := b.limit()/mib, c.limit; got != want {
				t.Errorf("limit %d MiB, want %d", got, want)
			}
		})
	}
}

// TestSlowDiskKeepsFlushesShort: on a disk of 1 MiB/s a session soon has no more dirty
// than that disk writes in some seconds, however fast its application writes.
func TestSlowDiskKeepsFlushesShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w writeback
		const perSecond = mib
		var rounds atomic.Int64
		w.init(func() {
			go func() {
				upTo, n := w.mark()
				took := time.Duration(float64(n) / perSecond * float64(time.Second))
				time.Sleep(took) // the disk's time, not anybody's patience
				rounds.Add(1)
				w.done(upTo, n, took)
			}()
		})
		w.start(dirtBound{first: 32 * mib, most: 1024 * mib})
		for rounds.Load() < 20 {
			w.wrote(64 << 10)
			time.Sleep(time.Millisecond) // 62 MiB/s, if nothing holds it up
			if most := int64(8 * perSecond); rounds.Load() > 1 && w.dirty() > most {
				t.Fatalf("after %d rounds %d bytes are dirty, at most %d should be", rounds.Load(), w.dirty(), most)
			}
		}
		w.stop()
		time.Sleep(time.Minute) // the last round ends
	})
}

// TestFlushLeavesNothingToWriteBack: what a flush has made durable begins no round.
func TestFlushLeavesNothingToWriteBack(t *testing.T) {
	s := newServer(t, Options{WritebackBytes: 64 << 10, MaxDirtyBytes: mib})
	create(t, s, uid(1), mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	if err := block.WriteAt(ses, pattern(32<<10, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got := ses.writeback.dirty(); got != 32<<10 {
		t.Fatalf("%d bytes are dirty after a write of %d", got, 32<<10)
	}
	if err := block.Flush(ses); err != nil {
		t.Fatal(err)
	}
	if got := ses.writeback.dirty(); got != 0 {
		t.Errorf("%d bytes are dirty after a flush", got)
	}
}
