package mirror

import "sync"

// tasks are the goroutines of a mirror. Unlike a WaitGroup it may be asked to
// run something while, or after, somebody waits: a replica's bad news can come
// at any time.
type tasks struct {
	mu      sync.Mutex
	running int        // Guarded by mu.
	idle    *sync.Cond // on mu; made by the first wait
	ended   bool       // Guarded by mu.
}

// run starts f in a goroutine and says so, unless wait has returned.
func (t *tasks) run(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.running++
	go func() {
		defer t.finished()
		f()
	}()
	return true
}

func (t *tasks) finished() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	if t.running == 0 && t.idle != nil {
		t.idle.Broadcast()
	}
}

// wait returns when nothing runs, and from then on nothing is started.
func (t *tasks) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = sync.NewCond(&t.mu)
	}
	for t.running > 0 {
		t.idle.Wait()
	}
	t.ended = true
}
