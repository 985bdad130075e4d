package blocktest

import (
	"math/rand/v2"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// reorderer hands requests to run from one goroutine of its own, in random
// order whenever several wait.
type reorderer struct {
	run  func(*block.IO)
	rng  *rand.Rand
	done chan struct{}

	mu       sync.Mutex
	cond     *sync.Cond
	queue    []*block.IO
	stopping bool
}

func newReorderer(rng *rand.Rand, run func(*block.IO)) *reorderer {
	r := &reorderer{run: run, rng: rng, done: make(chan struct{})}
	r.cond = sync.NewCond(&r.mu)
	go r.loop()
	return r
}

func (r *reorderer) put(io *block.IO) {
	r.mu.Lock()
	r.queue = append(r.queue, io)
	r.mu.Unlock()
	r.cond.Signal()
}

func (r *reorderer) loop() {
	defer close(r.done)
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && !r.stopping {
			r.cond.Wait()
		}
		if len(r.queue) == 0 {
			r.mu.Unlock()
			return
		}
		i, last := r.rng.IntN(len(r.queue)), len(r.queue)-1
		io := r.queue[i]
		r.queue[i], r.queue[last] = r.queue[last], nil
		r.queue = r.queue[:last]
		r.mu.Unlock()
		r.run(io)
	}
}

// stop ends the goroutine once the queue is empty. It may be called twice.
func (r *reorderer) stop() {
	r.mu.Lock()
	r.stopping = true
	r.mu.Unlock()
	r.cond.Signal()
	<-r.done
}
