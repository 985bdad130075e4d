package pace

import "time"

const (
	// A step is what is copied at once, under the lock of its range: so much time's
	// worth, within these bounds.
	stepTime  = 5 * time.Millisecond
	leastStep = 64 << 10
	mostStep  = 1 << 20

	startRate = 64 << 20 // bytes/s, until it is known what applications bear
	leastRate = 16 << 20 // whatever applications bear
	mostRate  = 64 << 30 // no limit

	copyFor     = 300 * time.Millisecond // between two looks at the applications
	settleFor   = 20 * time.Millisecond  // before such a look
	pauseLeast  = 10 * time.Millisecond  // of copying, to see how requests fare without
	pauseMost   = 50 * time.Millisecond
	pauseEnough = 16 // answers that end a pause

	few  = 16  // answers of a kind that tell something
	most = 256 // answers of a kind during pauses that are remembered

	tooSlow = 1.25 // slowdown from which on copying slows down
	fine    = 1.15 // slowdown up to which it goes faster
)

// phase is what the rate is doing.
type phase int

const (
	idle     phase = iota // nothing is being copied
	draining              // no step begins; those under way end
	settling              // none is under way; disks still write what was copied
	pausing               // no step is under way; the applications are watched
	copying
)

// rate decides how fast all resyncs of a node together may copy. It is pure: now
// is the time since some moment, and what was measured are arguments.
type rate struct {
	limit float64 // bytes/s
	// allowed is what may be copied now, in bytes/s. Invariant: at most limit.
	allowed float64
	tokens  float64       // bytes; negative: a step was taken in advance
	filled  time.Duration // when tokens were last added

	phase phase
	since time.Duration // of the phase
	moved int64         // bytes in this copying phase
	// unused: no request came in the last stretch of copying, or there was none yet.
	unused bool

	// Readings of the windows. An answer that comes late still counts for the window
	// in which its request began: late ones are what matters.
	atPause      count // when the pause began
	paused, busy count // up to where they are in without and during
	without      count // remembered of pauses
	during       count // of copying, not yet judged
}

func newRate(limit int64) rate {
	r := rate{limit: mostRate}
	if limit > 0 {
		r.limit = float64(limit)
	}
	return r
}

// measured is what the windows have counted up to now.
type measured struct {
	pausing, copying count
	running          int // steps under way
}

// begin: there is something to copy.
func (r *rate) begin(now time.Duration, m measured) {
	*r = rate{limit: r.limit, allowed: min(startRate, r.limit), filled: now, unused: true}
	r.paused, r.busy = m.pausing, m.copying
	r.enter(draining, now)
}

func (r *rate) end() { r.phase = idle }

func (r *rate) enter(p phase, now time.Duration) { r.phase, r.since = p, now }

// advance goes on to the phase that it is time for.
func (r *rate) advance(now time.Duration, m measured) {
	switch {
	case r.phase == draining && m.running == 0:
		r.enter(settling, now)
		if r.unused {
			r.pause(now, m)
		}
	case r.phase == settling && now-r.since >= settleFor:
		r.pause(now, m)
	case r.phase == pausing && r.seenEnough(now, m):
		r.without = r.without.plus(m.pausing.since(r.paused)).faded(most)
		r.paused = m.pausing
		r.moved, r.tokens, r.filled = 0, 0, now
		r.enter(copying, now)
	case r.phase == copying && now-r.since >= copyFor:
		r.judge(now, m)
	}
}

func (r *rate) pause(now time.Duration, m measured) {
	r.atPause = m.pausing
	r.enter(pausing, now)
}

// seenEnough ends a pause.
func (r *rate) seenEnough(now time.Duration, m measured) bool {
	seen, lasted := m.pausing.since(r.atPause), now-r.since
	return lasted >= pauseMost || lasted >= pauseLeast && (r.unused && seen.began == 0 || seen.answers() >= pauseEnough)
}

// judge ends a stretch of copying.
func (r *rate) judge(now time.Duration, m measured) {
	got := m.copying.since(r.busy)
	r.busy = m.copying
	took := (now - r.since).Seconds()
	reached := float64(r.moved) / took
	underWay := float64(m.copying.began) - m.copying.answers()
	r.unused = got.began == 0 && underWay <= 0
	if r.unused {
		r.allowed = min(r.limit, 2*r.allowed)
		r.moved = 0
		r.enter(copying, now)
		return
	}
	r.during = r.during.plus(got)
	if ratio, ok := r.during.slowdown(r.without, few); ok {
		r.during = r.during.scaled(0.5)
		r.adapt(ratio, reached)
	}
	r.enter(draining, now)
}

// adapt changes the rate by how much slower requests were while so much was copied.
func (r *rate) adapt(slowdown, reached float64) {
	switch {
	case slowdown > tooSlow:
		r.allowed = max(leastRate, min(r.allowed, reached)*max(0.5, fine/slowdown))
	case slowdown < fine:
		r.allowed = min(1.25*r.allowed, max(2*reached, startRate))
	}
	r.allowed = min(r.allowed, r.limit)
}

// step is how many bytes may be copied now, or 0, and then after how long to ask
// again.
func (r *rate) step(now time.Duration) (bytes int64, again time.Duration) {
	switch r.phase {
	case copying:
	case pausing, settling:
		return 0, pauseLeast
	default:
		return 0, copyFor // the end of a step comes first
	}
	r.tokens = min(r.tokens+r.allowed*(now-r.filled).Seconds(), r.size())
	r.filled = now
	if r.tokens < 0 {
		return 0, max(time.Millisecond, time.Duration(-r.tokens/r.allowed*float64(time.Second)))
	}
	return int64(r.size()), 0
}

// size is a step's.
func (r *rate) size() float64 {
	n := int64(r.allowed*stepTime.Seconds()) &^ (leastStep - 1)
	return float64(max(leastStep, min(n, mostStep)))
}

// took: a step was begun; or, with less than 0, it needed less.
func (r *rate) took(bytes int64) {
	r.tokens -= float64(bytes)
	r.moved += bytes
}
