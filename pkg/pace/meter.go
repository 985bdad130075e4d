package pace

import (
	"sync/atomic"
	"time"
)

// Kind is what a request of an application does, as far as its latency goes.
type Kind int

// The kinds.
const (
	Read Kind = iota
	Write
	Flush
	kinds
)

// Window counts requests that began while copying went on, or while it paused.
// Nil counts nothing.
type Window struct {
	began    atomic.Int64
	answered [kinds]struct{ n, nanos atomic.Int64 }
}

// Begin notes a request.
func (w *Window) Begin() {
	if w != nil {
		w.began.Add(1)
	}
}

// End notes its answer.
func (w *Window) End(k Kind, took time.Duration) {
	if w != nil {
		w.answered[k].n.Add(1)
		w.answered[k].nanos.Add(int64(took))
	}
}

// count is what a window has counted, or a part of it.
type count struct {
	began int64
	n     [kinds]float64
	took  [kinds]float64 // seconds
}

func (w *Window) read() count {
	// Answers are read first: no more of them than requests that began.
	var c count
	for k := range c.n {
		c.n[k] = float64(w.answered[k].n.Load())
		c.took[k] = time.Duration(w.answered[k].nanos.Load()).Seconds()
	}
	c.began = w.began.Load()
	return c
}

// since is what has come after an earlier reading.
func (c count) since(before count) count {
	c.began -= before.began
	for k := range c.n {
		c.n[k] -= before.n[k]
		c.took[k] -= before.took[k]
	}
	return c
}

func (c count) plus(d count) count {
	c.began += d.began
	for k := range c.n {
		c.n[k] += d.n[k]
		c.took[k] += d.took[k]
	}
	return c
}

// scaled has each answer count for less.
func (c count) scaled(by float64) count {
	for k := range c.n {
		c.n[k], c.took[k] = c.n[k]*by, c.took[k]*by
	}
	return c
}

// answers is how many requests were answered.
func (c count) answers() float64 {
	var sum float64
	for _, n := range c.n {
		sum += n
	}
	return sum
}

// faded has each kind count for no more than most answers, so that what comes
// next soon outweighs what was.
func (c count) faded(most float64) count {
	for k, n := range c.n {
		if n > most {
			c.n[k], c.took[k] = most, c.took[k]*most/n
		}
	}
	return c
}

// slowdown is how many times as long the requests in c took as those in base, of
// each kind that is in both at least few times; ok is false if there are not
// enough to tell.
func (c count) slowdown(base count, few float64) (ratio float64, ok bool) {
	var n, took, expected float64
	for k := range c.n {
		if base.n[k] < few || c.n[k] == 0 {
			continue
		}
		n += c.n[k]
		took += c.took[k]
		expected += c.n[k] * base.took[k] / base.n[k]
	}
	if n < 2*few || expected == 0 {
		return 0, false
	}
	return took / expected, true
}
