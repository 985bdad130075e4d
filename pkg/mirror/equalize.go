package mirror

import (
	"bytes"
	"context"
	"sync"

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
	// Write and WriteZeroes begin to change the target. What they return waits until that
	// has ended, must be called, and p stays as it is until then.
	Write(p []byte, off int64) (ended func() error)
	WriteZeroes(off, n int64) (ended func() error)
}

const (
	partBytes   = 256 << 10 // what is read, and then written, at once
	mostWriting = 8         // parts
)

// buffers are for one range each, as long as a request may be.
var buffers = sync.Pool{New: func() any { b := block.Alloc(block.MaxIOBytes); return &b }}

// Equalize copies what differs in a range of at most block.MaxIOBytes, and tells how
// many bytes that was; an error is the source's or the target's. While parts are being
// written the next ones are read. When it returns nothing is under way.
func Equalize(s Sides, off, n int64) (copied int64, source bool, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	w := writing{}
	for _, r := range parts(differing(s, off, n)) {
		p := (*buf)[r.Off-off:][:r.Len]
		if err := s.Read(p, r.Off); err != nil {
			if failed := w.wait(0); failed != nil {
				return w.copied, false, failed
			}
			return w.copied, true, err
		}
		w.begin(r.Len, put(s, p, r.Off))
		if w.wait(mostWriting-1) != nil {
			break
		}
	}
	err = w.wait(0)
	return w.copied, false, err
}

// writing is the parts that are under way to the target.
type writing struct {
	parts  []part // the oldest first
	copied int64  // bytes that arrived
	err    error  // the first one
}

type part struct {
	bytes int64
	ended func() error
}

func (w *writing) begin(bytes int64, ended func() error) {
	w.parts = append(w.parts, part{bytes, ended})
}

// wait waits until no more than so many are under way. The first error stays.
func (w *writing) wait(most int) error {
	for len(w.parts) > most {
		p := w.parts[0]
		w.parts = w.parts[1:]
		if err := p.ended(); err == nil {
			w.copied += p.bytes
		} else if w.err == nil {
			w.err = err
		}
	}
	return w.err
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

// parts cuts spans into what is copied at once.
func parts(spans []span) []span {
	var out []span
	for _, r := range spans {
		for off, end := r.Off, r.Off+r.Len; off < end; off += partBytes {
			out = append(out, span{off, min(partBytes, end-off)})
		}
	}
	return out
}

// put begins to write p, as a hole if it is all zeroes: the target may have old bytes
// where the source has nothing.
func put(s Sides, p []byte, off int64) (ended func() error) {
	if allZero(p) && mutant.On("copy-skips-holes") {
		return func() error { return nil }
	}
	if allZero(p) {
		return s.WriteZeroes(off, int64(len(p)))
	}
	return s.Write(p, off)
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
func (s legSides) Write(p []byte, off int64) (ended func() error) {
	return begin(s.target, &block.IO{Op: block.OpWrite, Off: off, Len: int64(len(p)), Data: p})
}

// WriteZeroes implements Sides.
func (s legSides) WriteZeroes(off, n int64) (ended func() error) {
	return begin(s.target, &block.IO{Op: block.OpWriteZeroes, Off: off, Len: n})
}

// begin submits a request; what it returns waits for the answer.
func begin(d block.Device, io *block.IO) (ended func() error) {
	answer := make(chan error, 1) // has room for it
	io.Done = func(_ *block.IO, err error) { answer <- err }
	d.Submit(io)
	return func() error { return <-answer }
}
