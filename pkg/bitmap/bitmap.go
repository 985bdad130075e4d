// Package bitmap has sets of small integers, such as the regions of a volume:
// one bit each, 64 to a word. It is pure: no clock, file, goroutine or lock.
//
// A Set belongs to one caller at a time.
package bitmap

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// Set is a set of the numbers below its length. The nil Set is empty, of length
// 0, and may be asked.
type Set struct {
	// Invariant: bits from n on are zero.
	words []uint64
	n     int
}

// New makes an empty set of the numbers below n.
func New(n int) *Set { return &Set{words: make([]uint64, (n+63)/64), n: n} }

// Len is the number that all members are below.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.n
}

// Has says whether i is a member; nothing outside of the length is.
func (s *Set) Has(i int) bool {
	return i >= 0 && i < s.Len() && s.words[i/64]&(1<<(i%64)) != 0
}

// Add makes i, which is below the length, a member.
func (s *Set) Add(i int) { s.words[i/64] |= 1 << (i % 64) }

// Remove makes i no member.
func (s *Set) Remove(i int) {
	if i >= 0 && i < s.Len() {
		s.words[i/64] &^= 1 << (i % 64)
	}
}

// AddRange adds from, from+1, ... to-1, as far as they are below the length.
func (s *Set) AddRange(from, to int) {
	for i := max(from, 0); i < min(to, s.Len()); {
		if i%64 == 0 && i+64 <= min(to, s.n) {
			s.words[i/64] = ^uint64(0)
			i += 64
			continue
		}
		s.Add(i)
		i++
	}
}

// RemoveRange removes the members from up to but without to.
func (s *Set) RemoveRange(from, to int) {
	for to = min(to, s.n); from < to; {
		if from%64 == 0 && to-from >= 64 {
			s.words[from/64] = 0
			from += 64
			continue
		}
		s.words[from/64] &^= 1 << (from % 64)
		from++
	}
}

// AddAll adds everything below the length.
func (s *Set) AddAll() { s.AddRange(0, s.n) }

// Or adds the members of o, as far as they are below the length of s.
func (s *Set) Or(o *Set) {
	if o == nil {
		return
	}
	for i := range min(len(s.words), len(o.words)) {
		s.words[i] |= o.words[i]
	}
	s.trim()
}

// AndNot removes the members of o.
func (s *Set) AndNot(o *Set) {
	if o == nil {
		return
	}
	for i := range min(len(s.words), len(o.words)) {
		s.words[i] &^= o.words[i]
	}
}

// trim restores the invariant.
func (s *Set) trim() {
	if s.n%64 != 0 {
		s.words[len(s.words)-1] &= 1<<(s.n%64) - 1
	}
}

// Next is the first member from i on, or the length.
func (s *Set) Next(i int) int { return s.find(i, 0) }

// NextAbsent is the first number from i on that is no member, or the length.
func (s *Set) NextAbsent(i int) int { return s.find(i, ^uint64(0)) }

func (s *Set) find(i int, flip uint64) int {
	for i = max(i, 0); i < s.Len(); i = (i/64 + 1) * 64 {
		if w := (s.words[i/64] ^ flip) >> (i % 64); w != 0 {
			return min(i+bits.TrailingZeros64(w), s.n)
		}
	}
	return s.Len()
}

// HasRange says whether from, from+1, ... to-1 are all members. It looks at no others,
// as NextAbsent does.
func (s *Set) HasRange(from, to int) bool {
	if from >= to {
		return true
	}
	if from < 0 || to > s.Len() {
		return false
	}
	for i := from; i < to; i = (i/64 + 1) * 64 {
		if w := ^s.words[i/64] >> (i % 64); w != 0 && i+bits.TrailingZeros64(w) < to {
			return false
		}
	}
	return true
}

// Count is how many members there are.
func (s *Set) Count() int {
	if s == nil {
		return 0
	}
	n := 0
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// Clone makes a copy.
func (s *Set) Clone() *Set {
	if s == nil {
		return nil
	}
	return &Set{words: slices.Clone(s.words), n: s.n}
}

// Bytes is the set as ceil(length/8) bytes, number 0 in the lowest bit of the
// first.
func (s *Set) Bytes() []byte {
	b := make([]byte, 0, 8*len(s.words))
	for _, w := range s.words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b[:(s.n+7)/8]
}

// OrBytes adds the members that b, as Bytes makes it, has from the number at on,
// which is a multiple of 8, as far as they are below the length.
func (s *Set) OrBytes(at int, b []byte) {
	for i, v := range b {
		for k := 0; v != 0; k, v = k+1, v>>1 {
			if n := at + 8*i + k; v&1 != 0 && n < s.n {
				s.Add(n)
			}
		}
	}
}
