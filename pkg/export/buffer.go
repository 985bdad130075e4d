package export

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

const (
	// maxRequests bounds the requests of one export that are under way: the
	// loop device's queue has 128, and the readers hold some.
	maxRequests = 128 + 16
	// maxInflightBytes bounds the payload of one export under way; readers
	// may exceed it by one request each.
	maxInflightBytes = 16 << 20
	// maxResidentBytes bounds the memory that free buffers keep.
	maxResidentBytes = 16 << 20
	// idleAfter is how long an export is without a request until its free
	// buffers' memory goes back to the kernel.
	idleAfter = 2 * time.Second
	// requestHeaderBytes is the header and the arguments of a READ or WRITE:
	// so far before a page boundary a request is read, so that the payload is
	// aligned.
	requestHeaderBytes = inHeaderBytes + 40
)

// The states of a slot between being read and being answered. They decide who
// sends the reply: the reader that is still at it, or whoever completes it.
const (
	slotReading   = iota // the reader is handling it
	slotReplied          // it was completed meanwhile: the reader sends
	slotSubmitted        // the reader has gone on: who completes it sends
)

// slot is one request under way and its buffer. It belongs to whoever took it
// from the pool, then to the block.Device, then to the one who replies.
type slot struct {
	srv    *server
	number int    // in bufferPool.slots
	mem    []byte // a page of which the end holds headers, then the payload
	unique uint64
	io     block.IO
	state  atomic.Uint32 // slotReading, ...
	out    []byte        // the reply; nil if there is none
	// touched is how much of the payload may be resident.
	touched int64
}

// bufferPool has the slots of one export, over one mapping that is touched
// lazily.
type bufferPool struct {
	arena []byte
	slots []*slot // all of them
	page  int
	bytes atomic.Int64 // payload under way

	mu       sync.Mutex
	cond     sync.Cond
	free     []*slot // LIFO, so that a quiet export touches few
	resident int64   // sum of touched over free
	out      int     // slots taken and not returned
	room     func()  // of getOr
	timer    *time.Timer
	used     uint64 // counts takes, for the idle check
	seen     uint64 // used, at the last idle check
	closed   bool
}

func newBufferPool(srv *server) (*bufferPool, error) {
	page := os.Getpagesize()
	each := page + maxPayloadBytes
	arena, err := unix.Mmap(-1, 0, each*maxRequests, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map request buffers: %w", err)
	}
	// A huge page would make one small request cost 2 MiB. Kernels without
	// huge pages refuse the advice.
	_ = unix.Madvise(arena, unix.MADV_NOHUGEPAGE)
	p := &bufferPool{arena: arena, page: page, free: make([]*slot, 0, maxRequests)}
	p.cond.L = &p.mu
	for i := range maxRequests {
		s := &slot{srv: srv, number: i, mem: arena[i*each : (i+1)*each : (i+1)*each]}
		p.slots = append(p.slots, s)
		p.free = append(p.free, s)
	}
	return p, nil
}

// get takes a slot, and waits for one while too much is under way. It answers
// nil once the pool is closed.
func (p *bufferPool) get() *slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && p.fullLocked() {
		p.cond.Wait()
	}
	return p.takeLocked()
}

// getOr is get, but while too much is under way it answers nil, and calls room
// once as soon as that has changed.
func (p *bufferPool) getOr(room func()) (sl *slot, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && p.fullLocked() {
		p.room = room
		return nil, false
	}
	return p.takeLocked(), p.closed
}

func (p *bufferPool) takeLocked() *slot {
	if p.closed {
		return nil
	}
	p.used++
	last := len(p.free) - 1
	s := p.free[last]
	p.free = p.free[:last]
	p.out++
	p.resident -= s.touched
	if !p.fullLocked() {
		p.cond.Signal() // one answer can make room for several readers
	}
	return s
}

func (p *bufferPool) fullLocked() bool {
	return len(p.free) == 0 || p.bytes.Load() > maxInflightBytes
}

// charge accounts for n bytes of payload of a request that goes under way.
func (p *bufferPool) charge(s *slot, n int64) {
	s.touched = max(s.touched, n)
	p.bytes.Add(n)
}

// put returns a slot whose request had n bytes of payload charged. It reports
// whether the pool is closed and this was the last one out.
func (p *bufferPool) put(s *slot, n int64) (last bool) {
	p.bytes.Add(-n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.room != nil {
		defer p.room()
		p.room = nil
	}
	if p.resident+s.touched > maxResidentBytes {
		p.discard(s)
	}
	p.resident += s.touched
	p.free = append(p.free, s)
	p.out--
	if p.timer == nil && p.resident > 0 && !p.closed {
		p.seen = p.used
		p.timer = time.AfterFunc(idleAfter, p.idle)
	}
	p.cond.Signal()
	return p.closed && p.out == 0
}

// idle gives the memory back if nothing happened since the last look. It runs
// on a timer that only a busy export has.
func (p *bufferPool) idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if used := p.used; used != p.seen {
		p.seen = used
		p.timer.Reset(idleAfter)
		return
	}
	p.timer = nil
	for _, s := range p.free {
		p.discard(s)
	}
	p.resident = 0
}

// discard gives the memory of a free slot back.
func (p *bufferPool) discard(s *slot) {
	if s.touched == 0 {
		return
	}
	// Can't fail on a private anonymous mapping of ours; if it did, the pages
	// would only stay.
	_ = unix.Madvise(s.mem[p.page:], unix.MADV_DONTNEED)
	s.touched = 0
}

// close makes get answer nil. It reports whether no slot is out.
func (p *bufferPool) close() (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.cond.Broadcast()
	return p.out == 0
}

// release unmaps the memory. No slot may be used afterwards.
func (p *bufferPool) release() error { return unix.Munmap(p.arena) }
