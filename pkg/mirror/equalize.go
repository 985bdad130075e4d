package mirror

import (
	"bytes"
	"context"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Sides are two replicas of which one, the target, is made equal to the other, the
// source. Nobody else changes the range meanwhile.
type Sides interface {
	// Hashes asks both, at the same time, for the hashes of each volume.HashUnit of
	// a range; nil from one that can't tell.
	Hashes(off, n int64) (source, target []byte)
	// Read reads from the source.
	Read(p []byte, off int64) error
	// Write and WriteZeroes change the target.
	Write(p []byte, off int64) error
	WriteZeroes(off, n int64) error
}

// Equalize copies what differs, and tells how many bytes that was; an error is the
// source's or the target's.
func Equalize(s Sides, off, n int64) (copied int64, source bool, err error) {
	for _, r := range differing(s, off, n) {
		buf := block.Alloc(int(r.Len))
		if err := s.Read(buf, r.Off); err != nil {
			return copied, true, err
		}
		if err := put(s, buf, r.Off); err != nil {
			return copied, false, err
		}
		copied += r.Len
	}
	return copied, false, nil
}

// span is a range of bytes.
type span struct{ Off, Len int64 }

// differing compares hashes; if one side can't tell, everything differs.
func differing(s Sides, off, n int64) []span {
	ours, theirs := s.Hashes(off, n)
	units := int((n + volume.HashUnit - 1) / volume.HashUnit)
	if len(ours) != units*volume.HashBytes || len(theirs) != len(ours) {
		return []span{{off, n}}
	}
	var out []span
	for i := range units {
		at := i * volume.HashBytes
		if bytes.Equal(ours[at:at+volume.HashBytes], theirs[at:at+volume.HashBytes]) {
			continue
		}
		from := off + int64(i)*volume.HashUnit
		to := min(from+volume.HashUnit, off+n)
		if last := len(out) - 1; last >= 0 && out[last].Off+out[last].Len == from {
			out[last].Len = to - out[last].Off
			continue
		}
		out = append(out, span{from, to - from})
	}
	return out
}

// put writes buf, as a hole if it is all zeroes: the target may have old bytes
// where the source has nothing.
func put(s Sides, buf []byte, off int64) error {
	if allZero(buf) && mutant.On("copy-skips-holes") {
		return nil
	}
	if allZero(buf) {
		return s.WriteZeroes(off, int64(len(buf)))
	}
	return s.Write(buf, off)
}

// legSides are two open sessions.
type legSides struct {
	ctx            context.Context
	source, target Leg
}

// Hashes implements Sides.
func (s legSides) Hashes(off, n int64) (source, target []byte) {
	theirs := make(chan []byte, 1)
	go func() { theirs <- hashes(s.ctx, s.target, off, n) }() // has room for it
	return hashes(s.ctx, s.source, off, n), <-theirs
}

// blindSides compares nothing: all is copied.
type blindSides struct{ Sides }

// Hashes implements Sides.
func (blindSides) Hashes(_, _ int64) (source, target []byte) { return nil, nil }

func hashes(ctx context.Context, l Leg, off, n int64) []byte {
	h, err := l.Hashes(ctx, off, n)
	if err != nil {
		return nil
	}
	return h
}

// Read implements Sides.
func (s legSides) Read(p []byte, off int64) error { return block.ReadAt(s.source, p, off) }

// Write implements Sides.
func (s legSides) Write(p []byte, off int64) error { return block.WriteAt(s.target, p, off) }

// WriteZeroes implements Sides.
func (s legSides) WriteZeroes(off, n int64) error {
	return block.Do(s.target, &block.IO{Op: block.OpWriteZeroes, Off: off, Len: n})
}
