package blocktest

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// tracker checks that each of its requests is answered exactly once.
type tracker struct {
	next    atomic.Int64
	results []result
	pending sync.WaitGroup
}

type result struct {
	calls atomic.Int32
	io    *block.IO
	err   error
}

func newTracker(n int) *tracker {
	tr := &tracker{results: make([]result, n)}
	tr.pending.Add(n)
	return tr
}

// submit gives io a Done that notes the answer, then calls next if that is set.
func (tr *tracker) submit(d block.Device, io *block.IO) { tr.submitThen(d, io, nil) }

func (tr *tracker) submitThen(d block.Device, io *block.IO, next func()) {
	tr.track(io, next)
	d.Submit(io)
}

func (tr *tracker) track(io *block.IO, next func()) {
	r := &tr.results[tr.next.Add(1)-1]
	r.io = io
	io.Done = func(got *block.IO, err error) {
		if r.calls.Add(1) > 1 {
			return // wait reports it
		}
		r.err = err
		if got != io {
			r.err = errors.New("answered with another request")
		}
		if next != nil {
			next()
		}
		tr.pending.Done()
	}
}

// wait waits until all are answered, and checks that none was twice.
func (tr *tracker) wait(t *testing.T, timeout time.Duration) {
	t.Helper()
	all := make(chan struct{})
	go func() { tr.pending.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(timeout):
		for i := range tr.results {
			if r := &tr.results[i]; r.io != nil && r.calls.Load() == 0 {
				t.Errorf("no answer: %s", describe(r.io))
			}
		}
		t.Fatalf("requests were not answered within %v", timeout)
	}
	for i := range tr.results {
		if n := tr.results[i].calls.Load(); n != 1 {
			t.Errorf("%s: Done was called %d times", describe(tr.results[i].io), n)
		}
	}
}

// randomIO makes a request within [lo, hi), mostly aligned, and its effect on
// the model of the device.
func randomIO(rng *rand.Rand, lo, hi int64) *block.IO {
	io := &block.IO{Op: []block.Op{
		block.OpWrite, block.OpWrite, block.OpWrite, block.OpRead, block.OpRead, block.OpTrim, block.OpWriteZeroes, block.OpFlush,
	}[rng.IntN(8)], FUA: rng.IntN(8) == 0, NoHole: rng.IntN(2) == 0}
	if io.Op == block.OpFlush {
		io.FUA = false
		return io
	}
	limit := min(hi-lo, 128<<10)
	if !io.Op.Changes() || io.Op == block.OpWrite {
		limit = min(limit, block.MaxIOBytes)
	}
	io.Off, io.Len = lo+rng.Int64N(hi-lo), 1+rng.Int64N(limit)
	if rng.IntN(4) > 0 {
		io.Off -= io.Off % block.Align
		io.Len = (io.Len + block.Align - 1) / block.Align * block.Align
	}
	io.Off = max(io.Off, lo)
	io.Len = min(io.Len, hi-io.Off)
	switch io.Op {
	case block.OpRead:
		io.Data = block.Alloc(int(io.Len))
	case block.OpWrite:
		io.Data = pattern(rng.Uint64(), int(io.Len))
	}
	return io
}

// apply does to the model what io does to the device.
func apply(model []byte, io *block.IO) {
	switch io.Op {
	case block.OpWrite:
		copy(model[io.Off:], io.Data)
	case block.OpTrim, block.OpWriteZeroes:
		clear(model[io.Off : io.Off+io.Len])
	}
}

func testModel(b *bench) {
	seed := b.opt.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	b.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	model := make([]byte, b.size)
	b.want(0, model)
	for range b.opt.Ops {
		io := randomIO(rng, 0, b.size)
		b.must(io)
		if io.Op == block.OpRead {
			if i := firstDifference(io.Data, model[io.Off:io.Off+io.Len]); i >= 0 {
				b.Fatalf("%s: wrong content at offset %d", describe(io), io.Off+int64(i))
			}
		}
		apply(model, io)
	}
	b.want(0, model)
}

// testConcurrent lets several goroutines work in stripes of their own, several
// requests in flight each. Within a stripe the requests in flight don't
// overlap, so that the outcome is known.
func testConcurrent(b *bench) {
	testAtOnce(b, func(tr *tracker, ios []*block.IO) {
		for _, io := range ios {
			tr.submit(b.dev, io)
		}
	})
}

// testBatches is testConcurrent with SubmitAll.
func testBatches(b *bench) {
	testAtOnce(b, func(tr *tracker, ios []*block.IO) {
		for _, io := range ios {
			tr.track(io, nil)
		}
		block.SubmitAll(b.dev, slices.Clone(ios)) // which may change the slice
	})
}

// testAtOnce has goroutines submit many requests at once, and checks the result.
func testAtOnce(b *bench, submit func(*tracker, []*block.IO)) {
	const workers, rounds, depth = 4, 12, 16
	stripe := b.size / workers / block.Align * block.Align
	model := make([]byte, b.size)
	var group sync.WaitGroup
	for w := range int64(workers) {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 2))
			cell := stripe / depth
			for range rounds {
				tr := newTracker(depth)
				var ios []*block.IO
				for i := range int64(depth) {
					io := randomIO(rng, w*stripe+i*cell, w*stripe+(i+1)*cell)
					apply(model, io) // its part belongs to this goroutine
					ios = append(ios, io)
				}
				submit(tr, ios)
				tr.wait(b.T, b.opt.Timeout)
				for i := range tr.results {
					if err := tr.results[i].err; err != nil {
						b.Errorf("%s: %v", describe(tr.results[i].io), err)
					}
				}
			}
		})
	}
	group.Wait()
	b.want(0, model)
}

// testChain submits each request from the Done of the one before.
func testChain(b *bench) {
	const n = 64
	tr := newTracker(n)
	var next func(i int64) func()
	next = func(i int64) func() {
		if i == n {
			return nil
		}
		return func() {
			io := &block.IO{Op: block.OpWrite, Off: i * 4096, Len: 4096, Data: pattern(uint64(i), 4096)}
			tr.submitThen(b.dev, io, next(i+1))
		}
	}
	next(0)()
	tr.wait(b.T, b.opt.Timeout)
	for i := range int64(n) {
		b.want(i*4096, pattern(uint64(i), 4096))
	}
}

func testAfterClose(b *bench) {
	if err := b.dev.Close(); err != nil {
		b.Fatalf("Close: %v", err)
	}
	for _, io := range []*block.IO{
		{Op: block.OpRead, Len: 4096, Data: block.Alloc(4096)},
		{Op: block.OpWrite, Len: 4096, Data: block.Alloc(4096)},
		{Op: block.OpFlush}, {Op: block.OpTrim, Len: 4096}, {Op: block.OpWriteZeroes, Len: 4096},
	} {
		if err := b.do(io); !errors.Is(err, volume.ErrClosed) {
			b.Errorf("%s after Close: %v, want ErrClosed", io.Op, err)
		}
	}
	if err := b.dev.Close(); err != nil {
		b.Errorf("second Close: %v", err)
	}
}

// testCloseWaits closes while other goroutines submit. Everything is answered,
// and nothing that was submitted before Close is answered after it.
func testCloseWaits(b *bench) {
	const before, workers, each = 64, 4, 64
	first := newTracker(before)
	for i := range int64(before) {
		first.submit(b.dev, &block.IO{Op: block.OpWrite, Off: i * 4096, Len: 4096, Data: pattern(uint64(i), 4096)})
	}
	during := newTracker(workers * each)
	var group sync.WaitGroup
	started := make(chan struct{}, workers)
	for range workers {
		group.Go(func() {
			started <- struct{}{}
			for i := range int64(each) {
				during.submit(b.dev, &block.IO{Op: block.OpRead, Off: i * 4096, Len: 4096, Data: block.Alloc(4096)})
			}
		})
	}
	for range workers {
		<-started
	}
	if err := b.dev.Close(); err != nil {
		b.Errorf("Close: %v", err)
	}
	for i := range first.results {
		if first.results[i].calls.Load() == 0 {
			b.Fatal("Close returned before a request under way was answered")
		}
	}
	group.Wait()
	during.wait(b.T, b.opt.Timeout)
	for i := range first.results {
		if n := first.results[i].calls.Load(); n != 1 {
			b.Errorf("Done was called %d times", n)
		}
	}
}
