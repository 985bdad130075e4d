package blocktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// blockBytes is the unit in which a crash keeps or loses unflushed writes.
const blockBytes = 4096

// Memory is a block.Device in memory. Without faults it answers every request
// inside Submit.
type Memory struct {
	wake chan struct{} // closed and replaced whenever held changes

	mu      sync.Mutex
	data    []byte
	old     map[int64][]byte // durable content of blocks written since; nil: not tracked
	fail    func(*block.IO) error
	hold    func(*block.IO) bool
	held    []*block.IO
	counts  map[block.Op]int
	reorder *reorderer
	closed  bool
	active  sync.WaitGroup // requests accepted and not yet answered; Add under mu while !closed
}

// NewMemory makes a device of size bytes that reads as zeroes.
func NewMemory(size int64) *Memory {
	return &Memory{data: make([]byte, size), counts: make(map[block.Op]int), wake: make(chan struct{})}
}

// Size implements block.Device.
func (m *Memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}

// Grow makes the device larger; the new part reads as zeroes. A smaller size is
// ignored.
func (m *Memory) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if grow := size - int64(len(m.data)); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
}

// Fail makes requests fail: f is asked about each one before it has any effect,
// and an error it returns is the answer. nil removes the fault.
func (m *Memory) Fail(f func(*block.IO) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// Hold keeps back the requests for which f is true: they have no effect and get
// no answer until Release or Close. nil holds no further ones.
func (m *Memory) Hold(f func(*block.IO) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = f
}

// WaitHeld waits until at least n requests are held.
func (m *Memory) WaitHeld(ctx context.Context, n int) error {
	for {
		m.mu.Lock()
		have, wake := len(m.held), m.wake
		m.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d requests held: %w", have, n, ctx.Err())
		}
	}
}

// Release lets the held request at index i (in order of submission) go on, or
// all of them if i is negative. It panics if there is none at i.
func (m *Memory) Release(i int) {
	m.mu.Lock()
	var run []*block.IO
	if i < 0 {
		run, m.held = m.held, nil
	} else {
		run = []*block.IO{m.held[i]}
		m.held = append(m.held[:i:i], m.held[i+1:]...)
	}
	m.wakeLocked()
	m.mu.Unlock()
	for _, io := range run {
		m.finish(io)
	}
}

// Reorder makes the device answer from another goroutine, and in an order
// drawn from seed whenever several requests are waiting. Call it before the
// first request.
func (m *Memory) Reorder(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reorder = newReorderer(rand.New(rand.NewPCG(seed, 0)), m.finish)
}

// TrackDurable makes the device remember what Crash needs. Call it before the
// first request.
func (m *Memory) TrackDurable() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.old = make(map[int64][]byte)
}

// Crash makes a device with a content that this one could have after a power
// cut at this moment: what was flushed, and of each block written since, the
// durable or the newest content, as rng decides. It needs TrackDurable.
func (m *Memory) Crash(rng *rand.Rand) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMemory(int64(len(m.data)))
	copy(c.data, m.data)
	for at := int64(0); at < int64(len(m.data)); at += blockBytes {
		if b, ok := m.old[at]; ok && rng.IntN(2) == 0 {
			copy(c.data[at:], b)
		}
	}
	c.old = make(map[int64][]byte)
	return c
}

// Bytes is a copy of the content now.
func (m *Memory) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.data...)
}

// Count is the number of requests of one kind that were submitted so far,
// refused ones not counted.
func (m *Memory) Count(op block.Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[op]
}

// Submit implements block.Device.
func (m *Memory) Submit(io *block.IO) {
	keep, err := m.accept(io)
	switch {
	case err != nil:
		io.Done(io, err)
	case keep:
	case m.reorder != nil:
		m.reorder.put(io)
	default:
		m.finish(io)
	}
}

// accept takes responsibility for io, unless it answers an error; keep says
// that io is held.
func (m *Memory) accept(io *block.IO) (keep bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, fmt.Errorf("memory device: %w", volume.ErrClosed)
	}
	if err := block.CheckRange(io, int64(len(m.data))); err != nil {
		return false, err
	}
	m.counts[io.Op]++
	m.active.Add(1)
	if m.hold != nil && m.hold(io) {
		m.held = append(m.held, io)
		m.wakeLocked()
		return true, nil
	}
	return false, nil
}

// finish carries out an accepted request and answers it.
func (m *Memory) finish(io *block.IO) {
	m.mu.Lock()
	err := m.applyLocked(io)
	m.mu.Unlock()
	defer m.active.Done()
	io.Done(io, err)
}

func (m *Memory) applyLocked(io *block.IO) error {
	if m.closed {
		return fmt.Errorf("memory device: %w", volume.ErrClosed)
	}
	if m.fail != nil {
		if err := m.fail(io); err != nil {
			return err
		}
	}
	if io.Op.Changes() {
		m.rememberLocked(io.Off, io.Len)
	}
	switch io.Op {
	case block.OpRead:
		copy(io.Data, m.data[io.Off:])
	case block.OpWrite:
		copy(m.data[io.Off:], io.Data)
	case block.OpTrim, block.OpWriteZeroes:
		clear(m.data[io.Off : io.Off+io.Len])
	case block.OpFlush:
		clear(m.old)
	}
	if io.FUA {
		m.forgetLocked(io.Off, io.Len)
	}
	return nil
}

// rememberLocked keeps the durable content of the blocks that are about to be
// changed.
func (m *Memory) rememberLocked(off, n int64) {
	if m.old == nil {
		return
	}
	for at := off - off%blockBytes; at < off+n; at += blockBytes {
		if _, ok := m.old[at]; !ok {
			m.old[at] = append([]byte(nil), m.data[at:min(at+blockBytes, int64(len(m.data)))]...)
		}
	}
}

// forgetLocked makes off+n durable as it is; blocks that it covers only in
// part become durable in that part.
func (m *Memory) forgetLocked(off, n int64) {
	for at := off - off%blockBytes; at < off+n; at += blockBytes {
		if b, ok := m.old[at]; ok {
			from, to := max(at, off), min(at+int64(len(b)), off+n)
			copy(b[from-at:to-at], m.data[from:to])
		}
	}
}

func (m *Memory) wakeLocked() {
	close(m.wake)
	m.wake = make(chan struct{})
}

// Close implements block.Device. Held requests are answered with ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	m.closed = true
	held, r := m.held, m.reorder
	m.held = nil
	m.wakeLocked()
	m.mu.Unlock()
	for _, io := range held {
		m.finish(io)
	}
	m.active.Wait()
	if r != nil {
		r.stop()
	}
	return nil
}
