package nbd

import (
	"sync/atomic"
	"time"
)

// speed tells devices that answer at once (a page cache, memory) from those
// that make Submit wait (a disk, with direct I/O): the latter's requests are
// worth a worker each, for they can overlap; the former's would only pay for
// the wake-ups. One slow request makes the next few go to workers, which go on
// measuring; a run of quick ones ends it.
type speed struct {
	// credit is how many quick requests are needed until the device counts as
	// quick; 0: it does.
	credit atomic.Int32
}

const (
	slowStep   = 8  // that one slow request adds
	slowLimit  = 64 // of credit
	quickTime  = 40 * time.Microsecond
	quickExtra = 300 * time.Nanosecond // for each KiB, which has to be copied
)

func (s *speed) slow() bool { return s.credit.Load() > 0 }

// note records how long a read or write of n bytes took in the device. Racing
// calls may lose a count, which matters little.
func (s *speed) note(took time.Duration, n int) {
	limit := quickTime + time.Duration(n>>10)*quickExtra
	credit := s.credit.Load()
	switch {
	case took > limit:
		s.credit.Store(min(credit+slowStep, slowLimit))
	case credit > 0:
		s.credit.Store(credit - 1)
	}
}
