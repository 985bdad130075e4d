package export

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// encode makes a request as the kernel would.
func encode(op uint32, unique uint64, arg ...[]byte) []byte {
	in := make([]byte, inHeaderBytes)
	for _, a := range arg {
		in = append(in, a...)
	}
	host.PutUint32(in, uint32(len(in)))
	host.PutUint32(in[4:], op)
	host.PutUint64(in[8:], unique)
	host.PutUint64(in[16:], 1)
	return in
}

// ioArg is a fuse_read_in or fuse_write_in.
func ioArg(off uint64, n uint32) []byte {
	a := make([]byte, 40)
	host.PutUint64(a[8:], off)
	host.PutUint32(a[16:], n)
	return a
}

func fallocateArg(off, n uint64, mode uint32) []byte {
	a := make([]byte, 32)
	host.PutUint64(a[8:], off)
	host.PutUint64(a[16:], n)
	host.PutUint32(a[24:], mode)
	return a
}

func TestDecode(t *testing.T) {
	lying := encode(opFsync, 1, make([]byte, 16))
	host.PutUint32(lying, 40)
	cases := []struct {
		name string
		in   []byte
		want request
		err  error
	}{
		{"read", encode(opRead, 7, ioArg(4096, 8192)), request{op: opRead, unique: 7, off: 4096, length: 8192}, nil},
		{"write", encode(opWrite, 8, ioArg(4096, 3), []byte("abc")), request{op: opWrite, unique: 8, off: 4096, length: 3, payload: []byte("abc")}, nil},
		{"unique with the topmost bit", encode(opFsync, 1<<63|5, make([]byte, 16)), request{op: opFsync, unique: 1<<63 | 5}, nil},
		{"fallocate", encode(opFallocate, 9, fallocateArg(1, 2, 3)), request{op: opFallocate, unique: 9, off: 1, length: 2, mode: 3}, nil},
		{"operation without arguments", encode(opStatfs, 10), request{op: opStatfs, unique: 10}, nil},
		{"operation we don't know", encode(4711, 11, []byte("???")), request{op: 4711, unique: 11}, nil},
		{"nothing", nil, request{}, volume.ErrInvalid},
		{"half a header", make([]byte, inHeaderBytes-1), request{}, volume.ErrInvalid},
		{"wrong length", lying, request{op: opFsync, unique: 1}, volume.ErrInvalid},
		{"short arguments", encode(opRead, 12, make([]byte, 39)), request{op: opRead, unique: 12}, volume.ErrInvalid},
		{"write with too little payload", encode(opWrite, 13, ioArg(0, 4), []byte("abc")), request{}, volume.ErrInvalid},
		{"write with too much payload", encode(opWrite, 13, ioArg(0, 2), []byte("abc")), request{}, volume.ErrInvalid},
		{"read that is too long", encode(opRead, 14, ioArg(0, maxPayloadBytes+1)), request{}, volume.ErrInvalid},
		{"negative offset", encode(opRead, 15, ioArg(math.MaxUint64, 1)), request{}, volume.ErrInvalid},
		{"negative length", encode(opFallocate, 15, fallocateArg(0, math.MaxUint64, 3)), request{}, volume.ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := decode(c.in)
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if got.op != c.want.op || got.unique != c.want.unique || got.off != c.want.off || got.length != c.want.length ||
				got.mode != c.want.mode || !bytes.Equal(got.payload, c.want.payload) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// initArg is a fuse_init_in; since protocol 7.36 it has 64 bytes, before 16.
func initArg(major, minor uint32, flags uint64, n int) []byte {
	a := make([]byte, 64)
	host.PutUint32(a, major)
	host.PutUint32(a[4:], minor)
	host.PutUint32(a[12:], uint32(flags))
	host.PutUint32(a[16:], uint32(flags>>32))
	return a[:n]
}

func TestInit(t *testing.T) {
	const enough = initAsyncDIO | initMaxPages | initBigWrites | initAsyncRead
	cases := []struct {
		name string
		in   []byte
		err  error
	}{
		{"Linux 5.15", encode(opInit, 2, initArg(7, 34, enough, 16)), nil},
		{"Linux 6.18", encode(opInit, 2, initArg(7, 45, enough|initExt|1<<40, 64)), nil},
		{"other major version", encode(opInit, 2, initArg(8, 0, enough, 16)), volume.ErrUnsupported},
		{"too old", encode(opInit, 2, initArg(7, 27, enough, 16)), volume.ErrUnsupported},
		{"no asynchronous direct I/O", encode(opInit, 2, initArg(7, 34, enough&^initAsyncDIO, 16)), volume.ErrUnsupported},
		{"not INIT", encode(opGetattr, 2, make([]byte, 16)), volume.ErrUnsupported},
		{"short", encode(opInit, 2, make([]byte, 15)), volume.ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h, err := decodeInit(c.in)
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			out := initReply(h, 4096)
			if n := host.Uint32(out); int(n) != len(out) || host.Uint64(out[8:]) != 2 || host.Uint32(out[4:]) != 0 {
				t.Errorf("header % x of %d bytes", out[:outHeaderBytes], len(out))
			}
			p := out[outHeaderBytes:]
			if host.Uint32(p[4:]) != 34 || host.Uint32(p[12:]) != enough || host.Uint32(p[20:]) != 1<<20 || host.Uint16(p[28:]) != 256 {
				t.Errorf("INIT reply % x", p)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(opRead, 1, ioArg(0, 4096)))
	f.Add(encode(opWrite, 2, ioArg(0, 4), []byte("abcd")))
	f.Add(encode(opFallocate, 3, fallocateArg(0, 4096, unix.FALLOC_FL_PUNCH_HOLE)))
	f.Add(encode(opInit, 4, initArg(7, 45, math.MaxUint64, 64)))
	f.Add(encode(opSetattr, 5, make([]byte, 88)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := decode(in)
		if err == nil && (r.off < 0 || r.length < 0 || len(r.payload) > len(in)) {
			t.Errorf("%+v", r)
		}
		if (r.op == opRead || r.op == opWrite) && err == nil && r.length > maxPayloadBytes {
			t.Errorf("%d bytes", r.length)
		}
		if h, err := decodeInit(in); err == nil && h.major != protoMajor {
			t.Errorf("%+v", h)
		}
	})
}

func TestParseMounts(t *testing.T) {
	got := parseMounts(`21 26 0:20 / /proc rw,relatime - proc proc rw
99 26 0:56 / /var/a\040b/volume rw,nosuid shared:3 master:4 - fuse.holdfast holdfast rw,user_id=0
garbage
100 26 7:3 / /mnt rw - xfs /dev/loop3 rw
`)
	want := []mount{
		{"0:20", "/proc", "proc", "proc"},
		{"0:56", "/var/a b/volume", fuseType, "holdfast"},
		{"7:3", "/mnt", "xfs", "/dev/loop3"},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
}
