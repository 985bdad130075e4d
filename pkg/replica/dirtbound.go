package replica

import "time"

const (
	// roundTime is how long a round of write-back should take. While an application
	// writes, a round gets about half of what the disk gives to a flush, during which
	// that application waits: such a flush takes about one second.
	roundTime = 1500 * time.Millisecond
	// limitTime is how long it should take to write back all that is dirty, at most: half
	// of the mirror's patience, for a replica whose writers wait answers nothing.
	limitTime = 4 * time.Second
	// A round has at least one such part of the first one, and at most so many times as much.
	roundLeast = 16
	roundMost  = 3
)

// dirtBound decides how many bytes of a session may wait to be written back. What
// matters is the time that a flush would take. Random writes of small blocks are
// written back many times slower than sequential ones, and disks differ as much; so
// each round's rate is measured, and what may be dirty is what takes so much time.
// Of several sessions that share a disk each measures what it gets of it.
//
// The more is dirty, the more neighbours become one request of the disk, and blocks that
// are overwritten meanwhile are written once. So it is as much as that time allows,
// not as little as possible.
//
// It is pure.
type dirtBound struct {
	first int64   // bytes of a round until one has been measured
	most  int64   // bytes that may ever be dirty
	rate  float64 // bytes/s; 0: not measured
}

// wrote takes a round's measure. It believes at once that the disk has become slower;
// that it is faster only by steps: a part of what was dirty may have been written
// by others. A round of less than the least says nothing of the disk: a flush has
// written most of it, and the round has waited for that.
func (b *dirtBound) wrote(n int64, took time.Duration) {
	if n <= 0 || n < b.first/roundLeast || took <= 0 {
		return
	}
	rate := float64(n) / took.Seconds()
	if b.rate == 0 {
		b.rate = float64(b.first) / roundTime.Seconds()
	}
	b.rate = min(rate, 1.5*b.rate)
}

// trigger is how many dirty bytes begin a round.
func (b *dirtBound) trigger() int64 {
	n := b.first
	if b.rate > 0 {
		n = max(b.first/roundLeast, min(int64(b.rate*roundTime.Seconds()), b.first*roundMost))
	}
	return min(n, b.most)
}

// limit is at how many dirty bytes writers wait: more than a round, so that they go on
// while it runs.
func (b *dirtBound) limit() int64 {
	if b.rate == 0 {
		return b.most
	}
	return min(max(int64(b.rate*limitTime.Seconds()), 2*b.trigger()), b.most)
}
