package mirror

import (
	"bytes"
	"errors"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// memorySides are two replicas in memory. A write is carried out when its end is
// waited for, with the bytes that its buffer has then.
type memorySides struct {
	source, target []byte
	hashes         bool
	underWay, most int
	writes, zeroes int
	failRead       int64 // from this offset on; 0: never
	failWrite      int64
}

var errSource, errTarget = errors.New("source"), errors.New("target")

func (s *memorySides) Hashes(off, n int64) (source, target []byte) {
	if !s.hashes {
		return nil, nil
	}
	of := func(b []byte) (sums []byte) {
		for at := off; at < off+n; at += volume.HashUnit {
			unit := b[at:min(at+volume.HashUnit, off+n)]
			sums = append(sums, unit[0])
			sums = append(sums, make([]byte, volume.HashBytes-1)...)
		}
		return sums
	}
	return of(s.source), of(s.target)
}

func (s *memorySides) Read(p []byte, off int64) error {
	if s.failRead > 0 && off >= s.failRead {
		return errSource
	}
	copy(p, s.source[off:])
	return nil
}

func (s *memorySides) begin(off int64, do func()) func() error {
	s.underWay++
	s.most = max(s.most, s.underWay)
	return func() error {
		s.underWay--
		if s.failWrite > 0 && off >= s.failWrite {
			return errTarget
		}
		do()
		return nil
	}
}

func (s *memorySides) Write(p []byte, off int64) func() error {
	s.writes++
	return s.begin(off, func() { copy(s.target[off:], p) })
}

func (s *memorySides) WriteZeroes(off, n int64) func() error {
	s.zeroes++
	return s.begin(off, func() { clear(s.target[off:][:n]) })
}

// TestEqualize copies what differs and nothing else, several parts at a time, and
// leaves nothing under way, whatever fails.
func TestEqualize(t *testing.T) {
	const n = block.MaxIOBytes
	parts := n / partBytes
	cases := []struct {
		name   string
		change func(*memorySides)
		err    error
		source bool
		copied int64
		writes int
		zeroes int
		most   int
	}{
		{"everything, in parts", func(*memorySides) {}, nil, false, n, parts, 0, parts},
		{"a part of zeroes becomes a hole", func(s *memorySides) { clear(s.source[n+partBytes:][:partBytes]) }, nil, false, n, parts - 1, 1, parts},
		{"nothing differs", func(s *memorySides) { s.hashes = true; copy(s.target, s.source) }, nil, false, 0, 0, 0, 0},
		{"every other unit differs: so many at once and no more", func(s *memorySides) {
			s.hashes = true
			copy(s.target, s.source)
			for off := n; off < 2*n; off += 2 * volume.HashUnit {
				s.target[off]++
			}
		}, nil, false, n / 2, n / 2 / volume.HashUnit, 0, mostWriting},
		{"the source fails", func(s *memorySides) { s.failRead = n + 2*partBytes }, errSource, true, 2 * partBytes, 2, 0, 2},
		{"the target fails", func(s *memorySides) { s.failWrite = n + partBytes }, errTarget, false, partBytes, parts, 0, parts},
		{"both fail: the target is given up", func(s *memorySides) { s.failRead, s.failWrite = n+2*partBytes, n+partBytes }, errTarget, false, partBytes, 2, 0, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := &memorySides{source: bytes.Repeat([]byte{1, 2, 3}, n)[:3*n], target: make([]byte, 3*n)}
			c.change(s)
			outside := append(bytes.Clone(s.target[:n]), s.target[2*n:]...)
			copied, source, err := Equalize(s, n, n)
			if !errors.Is(err, c.err) || source != c.source || copied != c.copied {
				t.Errorf("copied %d, source %t, %v; want %d, %t, %v", copied, source, err, c.copied, c.source, c.err)
			}
			if s.writes != c.writes || s.zeroes != c.zeroes || s.most != c.most || s.underWay != 0 {
				t.Errorf("%d writes, %d of zeroes, %d at once, %d left under way; want %d, %d, %d, 0", s.writes, s.zeroes, s.most, s.underWay, c.writes, c.zeroes, c.most)
			}
			if err == nil && !bytes.Equal(s.source[n:2*n], s.target[n:2*n]) {
				t.Error("the range differs")
			}
			if !bytes.Equal(outside, append(bytes.Clone(s.target[:n]), s.target[2*n:]...)) {
				t.Error("it changed what is outside of the range")
			}
		})
	}
}
