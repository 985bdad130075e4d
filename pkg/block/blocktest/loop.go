package blocktest

import (
	"context"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// Loop is a block.Loop for tests: one goroutine in place of the thread, and
// system calls that wait in others.
type Loop struct {
	calls   chan func()
	ended   chan struct{}
	waiting sync.WaitGroup // operations

	mu   sync.Mutex
	over bool // Guarded by mu.
}

// NewLoop starts a loop that ends with the test, or by End.
func NewLoop(t testing.TB) *Loop {
	l := &Loop{calls: make(chan func(), 1024), ended: make(chan struct{})}
	var thread sync.WaitGroup
	thread.Go(func() {
		for f := range l.calls {
			f()
		}
	})
	t.Cleanup(func() {
		l.End()
		l.waiting.Wait()
		close(l.calls)
		thread.Wait()
	})
	return l
}

// End cancels what receives, and refuses posts from now on.
func (l *Loop) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.over = true
		close(l.ended)
	}
}

// Post implements block.Loop.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.calls <- f
	}
	return !l.over
}

// Start implements block.Loop.
func (l *Loop) Start(o *block.LoopOp) {
	l.waiting.Go(func() {
		var n int
		var err error
		switch o.Kind {
		case block.LoopRead:
			n, err = unix.Pread(o.FD, o.Data, o.Off)
		case block.LoopWrite:
			n, err = unix.Pwrite(o.FD, o.Data, o.Off)
		case block.LoopReceive:
			n, err = l.receive(o)
		}
		done := make(chan struct{})
		l.calls <- func() { o.Done(o, max(n, 0), err); close(done) }
		<-done
	})
}

func (l *Loop) receive(o *block.LoopOp) (int, error) {
	for {
		select {
		case <-l.ended:
			return 0, context.Canceled
		default:
		}
		fds := []unix.PollFd{{Fd: int32(o.FD), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 5); err == nil && n > 0 {
			n, _, err := unix.Recvfrom(o.FD, o.Data, unix.MSG_DONTWAIT)
			return n, err
		}
	}
}

// On is a device whose requests are submitted on the loop's thread.
func (l *Loop) On(d block.Device) block.Device { return onLoop{d, l} }

type onLoop struct {
	block.Device
	loop *Loop
}

// Submit implements block.Device.
func (d onLoop) Submit(io *block.IO) {
	on := func() { io.Loop = d.loop; d.Device.Submit(io) }
	if !d.loop.Post(on) {
		d.Device.Submit(io)
	}
}

var _ block.Loop = (*Loop)(nil)
