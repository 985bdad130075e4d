package main

import (
	"fmt"
	"time"
)

// rateOver is over how long a resync's rate is taken.
const rateOver = 10 * time.Second

// point is how far a resync was at a moment.
type point struct {
	at   time.Time
	done int64 // bytes
}

// estimates remember how far resyncs were when they were looked at before.
type estimates map[string][]point

// add notes how far a resync is, and returns its rate in bytes per second, 0 if
// that can't be told yet. One that has begun anew forgets what was.
func (e estimates) add(resync string, p point) (rate float64) {
	seen := e[resync]
	if n := len(seen); n > 0 && p.done < seen[n-1].done {
		seen = nil
	}
	for len(seen) > 1 && p.at.Sub(seen[0].at) > rateOver {
		seen = seen[1:]
	}
	e[resync] = append(seen, p)
	if len(seen) == 0 || !p.at.After(seen[0].at) {
		return 0
	}
	return float64(p.done-seen[0].done) / p.at.Sub(seen[0].at).Seconds()
}

// remaining says how fast a resync is and how long it will take, as far as that
// can be told.
func remaining(left int64, rate float64) string {
	if rate < 1 {
		return ""
	}
	s := fmt.Sprintf("  %s/s", size(int64(rate)))
	if seconds := float64(left) / rate; seconds < (1000 * time.Hour).Seconds() {
		s += fmt.Sprintf(", %s left", time.Duration(seconds+0.5)*time.Second)
	}
	return s
}
