package pace

import (
	"testing"
	"time"
)

// bench is a machine with an application: while so many bytes per second are
// copied, its requests take base*(1+copied/bears).
type bench struct {
	r       rate
	now     time.Duration
	m       measured
	rps     float64 // requests per second of the application
	base    time.Duration
	bears   float64
	disk    float64 // the most bytes per second that can be copied
	pending float64 // requests, in fractions
	copied  int64
}

const tickOf = time.Millisecond

// run lets time pass, and returns how many bytes per second were copied.
func (b *bench) run(d time.Duration) float64 {
	from := b.copied
	budget := 0.0
	for end := b.now + d; b.now < end; b.now += tickOf {
		b.r.advance(b.now, b.m)
		budget = min(budget+b.disk*tickOf.Seconds(), mostStep)
		moved := int64(0)
		for budget > 0 {
			n, _ := b.r.step(b.now)
			if n == 0 {
				break
			}
			b.r.took(n)
			budget -= float64(n)
			moved += n
		}
		b.copied += moved
		var c *count
		switch b.r.phase {
		case pausing:
			c = &b.m.pausing
		case copying:
			c = &b.m.copying
		default:
			continue
		}
		slower := 1.0
		if b.r.phase == copying {
			slower += b.speed() / b.bears
		}
		for b.pending += b.rps * tickOf.Seconds(); b.pending >= 1; b.pending-- {
			c.began++
			c.n[Write]++
			c.took[Write] += b.base.Seconds() * slower
		}
	}
	return float64(b.copied-from) / d.Seconds()
}

// speed is what is being copied, in bytes per second.
func (b *bench) speed() float64 {
	return min(float64(b.r.moved)/max(b.now-b.r.since, 20*time.Millisecond).Seconds(), b.disk)
}

func newBench(limit int64) *bench {
	b := &bench{r: newRate(limit), base: 200 * time.Microsecond, bears: 400 << 20, disk: 1 << 30}
	b.r.begin(0, b.m)
	return b
}

const mib = 1 << 20

func TestRate(t *testing.T) {
	cases := []struct {
		name     string
		limit    int64
		rps      float64
		bears    float64 // MiB/s at which requests take twice as long
		from, to float64 // MiB/s, in the end
	}{
		{"nobody uses the volumes: as fast as the disk", 0, 0, 1, 950, 1100},
		{"the limit holds", 100 * mib, 0, 1, 80, 101},
		{"a limit below the least rate holds too", mib, 0, 1, 0.8, 1.1},
		{"an application that does not care", 0, 5000, 1e6, 800, 1100},
		{"one that does: a quarter of what doubles its latency, or less", 0, 5000, 400, 40, 110},
		{"one that bears very little", 0, 5000, 8, leastRate / mib * 0.7, leastRate/mib + 1},
		{"one that bears nothing: the least rate", 0, 5000, 1, leastRate / mib * 0.7, leastRate/mib + 1},
		{"one with few requests", 0, 100, 400, 20, 140},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(c.limit)
			b.rps, b.bears = c.rps, c.bears*mib
			b.run(20 * time.Second)
			if got := b.run(20*time.Second) / mib; got < c.from || got > c.to {
				t.Errorf("%.1f MiB/s, want %v to %v", got, c.from, c.to)
			}
		})
	}
}

// The application comes, and goes.
func TestRateRecovers(t *testing.T) {
	b := newBench(0)
	b.run(3 * time.Second)
	if got := b.run(time.Second) / mib; got < 900 {
		t.Fatalf("%.0f MiB/s while nobody uses the volumes", got)
	}
	b.rps = 5000
	b.run(2 * time.Second)
	if got := b.run(5*time.Second) / mib; got > 150 {
		t.Errorf("%.0f MiB/s two seconds after an application came that bears 100", got)
	}
	b.rps = 0
	b.run(2 * time.Second)
	if got := b.run(time.Second) / mib; got < 900 {
		t.Errorf("%.0f MiB/s two seconds after it went", got)
	}
}

// An application all of whose requests hang is not one that has gone.
func TestRateOfStuckRequests(t *testing.T) {
	b := newBench(0)
	b.run(time.Second)
	b.rps = 0
	b.m.copying.began += 3
	before := b.r.allowed
	b.run(10 * time.Second)
	if b.r.allowed > before {
		t.Errorf("the rate grew from %.0f to %.0f while three requests hang", before, b.r.allowed)
	}
}

// A step that needs less than its turn leaves the rest to others.
func TestRateIsOfWhatWasCopied(t *testing.T) {
	r := newRate(64 * mib)
	r.begin(0, measured{})
	r.enter(copying, 0)
	turns := 0
	for now := time.Duration(0); now < time.Second; now += time.Millisecond {
		for {
			n, _ := r.step(now)
			if n == 0 {
				break
			}
			r.took(n)
			r.took(leastStep - n)
			turns++
		}
	}
	if turns < 900 || turns > 1100 {
		t.Errorf("%d turns of 64 KiB in a second at 64 MiB/s", turns)
	}
}

func TestSlowdown(t *testing.T) {
	of := func(reads, readTook, flushes, flushTook float64) count {
		var c count
		c.n[Read], c.took[Read] = reads, reads*readTook
		c.n[Flush], c.took[Flush] = flushes, flushes*flushTook
		return c
	}
	cases := []struct {
		name    string
		c, base count
		want    float64 // 0: can't tell
	}{
		{"the same", of(100, 1, 0, 0), of(10, 1, 0, 0), 1},
		{"slower", of(100, 2, 0, 0), of(10, 1, 0, 0), 2},
		{"more flushes are not a slowdown", of(10, 1, 100, 50), of(100, 1, 10, 50), 1},
		{"nothing to compare with", of(100, 1, 0, 0), of(0, 0, 100, 9), 0},
		{"too few", of(3, 1, 0, 0), of(100, 1, 0, 0), 0},
		{"a kind that is too rare is left out", of(100, 1, 100, 50), of(100, 1, 2, 1), 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, ok := c.c.slowdown(c.base, 4)
			if ok != (c.want != 0) || ok && (got < c.want-1e-9 || got > c.want+1e-9) {
				t.Errorf("%v, %v; want %v", got, ok, c.want)
			}
		})
	}
	if c := of(1000, 2, 3, 1).faded(100); c.n[Read] != 100 || c.took[Read] != 200 || c.n[Flush] != 3 {
		t.Errorf("%+v", c)
	}
}
