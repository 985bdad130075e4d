package blocktest

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options tune the suite; the zero value is right for most devices.
type Options struct {
	Ops     int           // random operations of the model check; 0 means 600
	Seed    uint64        // of the model check; 0 draws one, which is logged
	Timeout time.Duration // for one answer; 0 means a minute
}

// Suite bounds of the devices under test, in bytes.
const (
	MinDeviceBytes = 4 << 20
	MaxDeviceBytes = 64 << 20
)

// Run holds the device that make returns against the contract of block.Device.
// fresh is called once per case, for a fresh device that reads as zeroes and has
// MinDeviceBytes to MaxDeviceBytes (a multiple of 4096); what it needs to clean up besides
// Device.Close, it leaves to t.Cleanup.
func Run(t *testing.T, fresh func(t *testing.T) block.Device, opt Options) {
	if opt.Ops == 0 {
		opt.Ops = 600
	}
	if opt.Timeout == 0 {
		opt.Timeout = time.Minute
	}
	cases := []struct {
		name string
		run  func(*bench)
	}{
		{"reads back what was written", testReadBack},
		{"invalid requests are refused", testInvalid},
		{"zero length", testZeroLength},
		{"unaligned", testUnaligned},
		{"largest I/O", testLargest},
		{"trim and write-zeroes of everything", testLargeTrim},
		{"FUA and flush", testFUA},
		{"random operations match a model", testModel},
		{"concurrent submits", testConcurrent},
		{"concurrent batches", testBatches},
		{"submit from Done", testChain},
		{"submit after Close", testAfterClose},
		{"Close waits for requests under way", testCloseWaits},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := fresh(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			if s := d.Size(); s < MinDeviceBytes || s > MaxDeviceBytes || s%block.Align != 0 {
				t.Fatalf("the suite can't use a device of %d bytes", s)
			}
			c.run(&bench{T: t, dev: d, opt: opt, size: d.Size()})
		})
	}
}

// bench is one case's device and its helpers.
type bench struct {
	*testing.T
	dev  block.Device
	opt  Options
	size int64
}

// do submits io and waits for its answer.
func (b *bench) do(io *block.IO) error {
	b.Helper()
	tr := newTracker(1)
	tr.submit(b.dev, io)
	tr.wait(b.T, b.opt.Timeout)
	return tr.results[0].err
}

func (b *bench) must(io *block.IO) {
	b.Helper()
	if err := b.do(io); err != nil {
		b.Fatalf("%s at %d+%d: %v", io.Op, io.Off, io.Len, err)
	}
}

func (b *bench) read(off, n int64) []byte {
	b.Helper()
	p := block.Alloc(int(n))
	b.must(&block.IO{Op: block.OpRead, Off: off, Len: n, Data: p})
	return p
}

// want checks the content at off.
func (b *bench) want(off int64, want []byte) {
	b.Helper()
	for len(want) > 0 {
		n := min(len(want), block.MaxIOBytes)
		if i := firstDifference(b.read(off, int64(n)), want[:n]); i >= 0 {
			b.Fatalf("wrong content at offset %d", off+int64(i))
		}
		off, want = off+int64(n), want[n:]
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func testReadBack(b *bench) {
	p := pattern(1, 8192)
	b.must(&block.IO{Op: block.OpWrite, Off: 4096, Len: 8192, Data: p})
	if firstDifference(p, pattern(1, 8192)) >= 0 {
		b.Error("the device changed the data of a write")
	}
	b.want(4096, p)
	b.must(&block.IO{Op: block.OpWrite, Off: b.size - 4096, Len: 4096, Data: p[:4096]})
	b.want(b.size-4096, p[:4096])
}

func testInvalid(b *bench) {
	p := block.Alloc(4096)
	big := block.Alloc(block.MaxIOBytes + 4096)
	cases := []struct {
		name string
		io   block.IO
		want error
	}{
		{"read past the end", block.IO{Op: block.OpRead, Off: b.size, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"read across the end", block.IO{Op: block.OpRead, Off: b.size - 1, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"write past the end", block.IO{Op: block.OpWrite, Off: b.size, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"write across the end", block.IO{Op: block.OpWrite, Off: b.size - 4095, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"negative offset", block.IO{Op: block.OpWrite, Off: -4096, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"offset near overflow", block.IO{Op: block.OpRead, Off: math.MaxInt64 - 100, Len: 4096, Data: p}, volume.ErrOutOfRange},
		{"trim across the end", block.IO{Op: block.OpTrim, Off: 4096, Len: b.size}, volume.ErrOutOfRange},
		{"trim of a negative length", block.IO{Op: block.OpTrim, Off: 4096, Len: -1}, volume.ErrOutOfRange},
		{"write-zeroes near overflow", block.IO{Op: block.OpWriteZeroes, Off: 4096, Len: math.MaxInt64}, volume.ErrOutOfRange},
		{"length other than the buffer's", block.IO{Op: block.OpRead, Len: 8192, Data: p}, volume.ErrInvalid},
		{"write without a buffer", block.IO{Op: block.OpWrite, Len: 4096}, volume.ErrInvalid},
		{"too long", block.IO{Op: block.OpRead, Len: int64(len(big)), Data: big}, volume.ErrInvalid},
		{"no operation", block.IO{}, volume.ErrInvalid},
		{"unknown operation", block.IO{Op: 200}, volume.ErrInvalid},
	}
	for _, c := range cases {
		if err := b.do(&c.io); !errors.Is(err, c.want) {
			b.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	b.want(0, make([]byte, 8192))
}

func testZeroLength(b *bench) {
	for _, op := range []block.Op{block.OpRead, block.OpWrite, block.OpTrim, block.OpWriteZeroes} {
		for _, off := range []int64{0, 4096, 777, b.size} {
			b.must(&block.IO{Op: op, Off: off})
		}
		if err := b.do(&block.IO{Op: op, Off: b.size + 1}); !errors.Is(err, volume.ErrOutOfRange) {
			b.Errorf("%s of nothing past the end: %v, want ErrOutOfRange", op, err)
		}
	}
}

func testUnaligned(b *bench) {
	model := make([]byte, 64<<10)
	for i, c := range []struct{ off, n int64 }{{1, 1}, {511, 3}, {4095, 2}, {4097, 4096}, {100, 9000}, {8191, 1}, {12288, 513}} {
		p := pattern(uint64(i)+7, int(c.n)+1)[1:] // neither is the memory aligned
		b.must(&block.IO{Op: block.OpWrite, Off: c.off, Len: c.n, Data: p})
		copy(model[c.off:], p)
		b.want(0, model)
	}
	for i, c := range []struct{ off, n int64 }{{3, 5}, {4090, 10}, {100, 8192}, {20000, 1}} {
		op := []block.Op{block.OpTrim, block.OpWriteZeroes}[i%2]
		b.must(&block.IO{Op: op, Off: c.off, Len: c.n})
		clear(model[c.off : c.off+c.n])
		b.want(0, model)
	}
	got := make([]byte, 101)
	b.must(&block.IO{Op: block.OpRead, Off: 4000, Len: 100, Data: got[1:]})
	if firstDifference(got[1:], model[4000:4100]) >= 0 {
		b.Error("an unaligned read differs from the aligned one")
	}
}

func testLargest(b *bench) {
	p := pattern(3, block.MaxIOBytes)
	b.must(&block.IO{Op: block.OpWrite, Off: 12288, Len: block.MaxIOBytes, Data: p})
	b.want(12288, p)
}

func testLargeTrim(b *bench) {
	last := (b.size-1)%block.MaxIOBytes + 1 // bytes in the last of the writes below
	for i, io := range []block.IO{
		{Op: block.OpTrim}, {Op: block.OpWriteZeroes}, {Op: block.OpWriteZeroes, NoHole: true}, {Op: block.OpTrim, FUA: true},
	} {
		p := pattern(uint64(i), block.MaxIOBytes)
		for off := int64(0); off < b.size; off += block.MaxIOBytes {
			n := min(block.MaxIOBytes, b.size-off)
			b.must(&block.IO{Op: block.OpWrite, Off: off, Len: n, Data: p[:n]})
		}
		io.Off, io.Len = 4096, b.size-8192
		b.must(&io)
		b.want(0, p[:4096])
		b.want(4096, make([]byte, b.size-8192))
		b.want(b.size-4096, p[last-4096:last])
	}
}

func testFUA(b *bench) {
	p := pattern(9, 12288)
	b.must(&block.IO{Op: block.OpWrite, FUA: true, Off: 8192, Len: 12288, Data: p})
	b.must(&block.IO{Op: block.OpFlush})
	b.want(8192, p)
	b.must(&block.IO{Op: block.OpWriteZeroes, FUA: true, Off: 8192, Len: 4096})
	b.must(&block.IO{Op: block.OpTrim, FUA: true, Off: 12288, Len: 4096})
	b.must(&block.IO{Op: block.OpWrite, FUA: true, Off: 99, Len: 777, Data: p[:777]})
	b.must(&block.IO{Op: block.OpFlush})
	b.want(8192, make([]byte, 8192))
	b.want(16384, p[8192:])
	b.want(99, p[:777])
}

// pattern makes n bytes that depend on seed, aligned for direct I/O.
func pattern(seed uint64, n int) []byte {
	p := block.Alloc(n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x>>32) | 1 // never zero, so that it differs from a hole
	}
	return p
}

func describe(io *block.IO) string {
	return fmt.Sprintf("%s at %d+%d (FUA %t, NoHole %t)", io.Op, io.Off, io.Len, io.FUA, io.NoHole)
}
