package replica

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// tryRead reads n bytes at off if that needs no waiting.
func tryRead(s *Session, off, n int64) (p []byte, ok bool, err error) {
	p = block.Alloc(int(n))
	err = errors.New("Done was not called")
	ok = s.TryRead(&block.IO{Op: block.OpRead, Off: off, Len: n, Data: p, Done: func(_ *block.IO, e error) { err = e }})
	return p, ok, err
}

func TestTryRead(t *testing.T) {
	const size = 4 * mib
	cases := []struct {
		name   string
		direct bool
		evict  bool
		off, n int64
		want   bool
	}{
		{"cached", false, false, 4096, 8192, true},
		{"cached, unaligned", false, false, 777, 1001, true},
		{"not cached", false, true, 4096, 8192, false},
		{"past the end", false, false, size - 4096, 8192, false},
		{"nothing", false, false, 0, 0, false},
		{"direct", true, false, 4096, 8192, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			server := newServer(t, Options{})
			create(t, server, uid(1), size)
			o := opening(uid(1), 1, 1)
			o.Direct = c.direct
			s := open(t, server, o)
			want := bytes.Repeat([]byte("try"), 2*mib/3)
			if err := errors.Join(block.WriteAt(s, want[:mib], 0), block.Flush(s)); err != nil {
				t.Fatal(err)
			}
			if c.evict {
				if err := unix.Fadvise(s.img.(*osImage).cached, 0, 0, unix.FADV_DONTNEED); err != nil {
					t.Fatal(err)
				}
			}
			got, ok, err := tryRead(s, c.off, c.n)
			if ok != c.want {
				t.Fatalf("answered %t, want %t", ok, c.want)
			}
			if ok && (err != nil || !bytes.Equal(got, want[c.off:c.off+c.n])) {
				t.Errorf("wrong content, or %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, ok, _ := tryRead(s, 0, 4096); ok {
				t.Error("answered after Close")
			}
		})
	}
}
