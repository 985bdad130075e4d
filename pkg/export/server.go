package export

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// server answers the requests of one FUSE connection out of a block.Device.
type server struct {
	fd     int    // /dev/fuse
	abort  func() // ends the connection from outside
	dev    block.Device
	pool   *bufferPool
	log    *slog.Logger
	opened atomic.Bool // the one OPEN that is allowed has happened
	dead   atomic.Bool // the connection is gone
	gone   chan struct{}
	once   sync.Once
	exited sync.WaitGroup             // readers
	freed  chan struct{}              // closed when descriptor and buffers are released
	ring   atomic.Pointer[ringReader] // the reader, if it has a ring
}

// newServer takes over fd, a blocking descriptor on which INIT has been
// answered.
func newServer(fd int, dev block.Device, log *slog.Logger) (*server, error) {
	s := &server{fd: fd, abort: func() {}, dev: dev, log: log, gone: make(chan struct{}), freed: make(chan struct{})}
	pool, err := newBufferPool(s)
	if err != nil {
		return nil, err
	}
	s.pool = pool
	return s, nil
}

// start starts the readers, which end when the connection does. With threads 0
// one reader uses io_uring if the host has it, else there are DefaultThreads.
func (s *server) start(threads int) {
	go func() {
		if threads == 0 {
			ready := make(chan error, 1)
			s.exited.Go(func() { s.serveRing(ready) })
			if err := <-ready; err != nil {
				s.log.Info("FUSE requests are read by threads", "reason", err)
				threads = DefaultThreads
			}
		}
		for range threads {
			s.exited.Go(s.serveThread)
		}
		s.exited.Wait()
		s.lost()
		if s.pool.close() {
			s.free()
		}
	}()
}

// input is where a request is read to.
func (s *server) input(sl *slot) []byte { return sl.mem[s.pool.page-requestHeaderBytes:] }

// take handles a request of n bytes that the reader has read into the slot. It
// answers whether the slot's IO is to be submitted to the device.
func (s *server) take(sl *slot, n int) (submit bool) {
	sl.state.Store(slotReading)
	return s.handle(sl, s.input(sl)[:n])
}

// replied says, when the reader is done with a request, whether the reply is
// there already, for it to send.
func (sl *slot) replied() bool { return !sl.state.CompareAndSwap(slotReading, slotSubmitted) }

// handle answers a request, or makes an IO of it. It says whether that is to be
// submitted to the device.
func (s *server) handle(sl *slot, in []byte) (submit bool) {
	r, err := decode(in)
	sl.unique = r.unique
	if err != nil {
		s.log.Error("the kernel sent a FUSE request that can't be decoded", "err", err)
		s.reply(sl, unix.EINVAL, 0)
		return false
	}
	payload := sl.mem[s.pool.page:]
	switch r.op {
	case opRead:
		return s.prepare(sl, block.IO{Op: block.OpRead, Off: r.off, Len: r.length, Data: payload[:r.length:r.length]})
	case opWrite:
		return s.prepare(sl, block.IO{Op: block.OpWrite, Off: r.off, Len: r.length, Data: r.payload})
	case opFsync:
		s.submitAside(sl, block.IO{Op: block.OpFlush})
	case opFallocate:
		s.fallocate(sl, r)
	case opGetattr:
		putAttrOut(payload, s.dev.Size())
		s.reply(sl, 0, attrOutBytes)
	case opSetattr:
		if r.mode&setattrSize != 0 {
			s.reply(sl, unix.EPERM, 0)
			return false
		}
		putAttrOut(payload, s.dev.Size())
		s.reply(sl, 0, attrOutBytes)
	case opOpen:
		// The loop device is the one way to the data: a second one would have
		// a page cache of its own.
		if s.opened.Swap(true) {
			s.reply(sl, unix.EBUSY, 0)
			return false
		}
		putOpenOut(payload)
		s.reply(sl, 0, openOutBytes)
	case opStatfs:
		putStatfsOut(payload)
		s.reply(sl, 0, statfsOutBytes)
	case opRelease, opDestroy:
		s.reply(sl, 0, 0)
	case opForget, opBatchForget: // have no reply
		sl.out = nil
		sl.state.Store(slotReplied)
	default: // INTERRUPT, FLUSH, GETXATTR, LSEEK, ...: the kernel then stops asking
		s.reply(sl, unix.ENOSYS, 0)
	}
	return false
}

// fallocate maps what the loop device sends for discard and write-zeroes.
func (s *server) fallocate(sl *slot, r request) {
	switch r.mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		s.submitAside(sl, block.IO{Op: block.OpTrim, Off: r.off, Len: r.length})
	case unix.FALLOC_FL_ZERO_RANGE:
		s.submitAside(sl, block.IO{Op: block.OpWriteZeroes, Off: r.off, Len: r.length, NoHole: true})
	default:
		s.reply(sl, unix.EOPNOTSUPP, 0)
	}
}

func (s *server) prepare(sl *slot, io block.IO) bool {
	io.User, io.Done = sl, complete
	sl.io = io
	s.pool.charge(sl, int64(len(io.Data)))
	return true
}

// submitAside submits from a goroutine of its own, which a synchronous device may
// keep for long, so that reads and writes go on meanwhile. The request's slot
// bounds these goroutines, and keeps the server alive until they have ended.
func (s *server) submitAside(sl *slot, io block.IO) {
	io.User, io.Done = sl, complete
	sl.io = io
	go s.dev.Submit(&sl.io)
}

// complete is the Done of every request.
func complete(io *block.IO, err error) {
	sl := io.User.(*slot)
	s := sl.srv
	switch {
	case err != nil:
		s.reply(sl, errnoOf(err), 0)
	case io.Op == block.OpRead:
		s.reply(sl, 0, int(io.Len))
	case io.Op == block.OpWrite:
		// fuse_write_out goes where the payload was, which is done with.
		out := sl.mem[s.pool.page:]
		host.PutUint64(out, uint64(io.Len))
		s.reply(sl, 0, 8)
	default:
		s.reply(sl, 0, 0)
	}
}

// reply answers with the n bytes that stand in the payload, or with errno. If
// the reader is still at this request, it sends the reply, together with others
// if it can; else this goroutine does.
func (s *server) reply(sl *slot, errno unix.Errno, n int) {
	sl.out = sl.mem[s.pool.page-outHeaderBytes:][:outHeaderBytes+n]
	putOutHeader(sl.out, sl.unique, errno, n)
	switch {
	case sl.state.CompareAndSwap(slotReading, slotReplied):
	case sl.io.DoneOn != nil: // this is the reader's thread
		s.ring.Load().reply(sl)
	default:
		s.send(sl)
	}
}

// send writes the reply and returns the slot. A request that got no reply would
// hang for ever, so one that can't be written is tried again while the kernel is
// short of something, then replaced by an error, and else ends the connection.
func (s *server) send(sl *slot) {
	defer s.drop(sl)
	errno := s.write(sl.out)
	for wait := time.Millisecond; short(errno) && wait <= maxReplyPause; wait *= 2 {
		time.Sleep(wait)
		errno = s.write(sl.out)
	}
	if s.checkSent(errno) {
		return
	}
	s.log.Error("replying to a FUSE request failed", "err", errno)
	out := sl.out[:outHeaderBytes]
	putOutHeader(out, sl.unique, unix.EIO, 0)
	if !s.checkSent(s.write(out)) {
		s.abort()
	}
}

// short says whether the kernel may be able to do it a little later.
func short(errno unix.Errno) bool { return errno == unix.EAGAIN || errno == unix.ENOMEM }

// maxReplyPause is the longest pause between two attempts to send a reply.
const maxReplyPause = 256 * time.Millisecond

func (s *server) write(out []byte) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// checkSent says whether a reply has arrived, or nobody waits for it: ENOENT: the
// request was aborted in the meantime; ENODEV: unmounted.
func (s *server) checkSent(errno unix.Errno) bool {
	return errno == 0 || errno == unix.ENOENT || errno == unix.ENODEV
}

// drop returns a slot, and releases everything if it was the last one.
func (s *server) drop(sl *slot) {
	n := int64(len(sl.io.Data))
	sl.io, sl.out = block.IO{}, nil
	if s.pool.put(sl, n) {
		s.free()
	}
}

// lost notes that the connection is gone.
func (s *server) lost() {
	s.dead.Store(true)
	s.once.Do(func() { close(s.gone) })
}

// free releases descriptor and memory. Only the one who saw the pool closed
// with no slot out calls it, hence once.
func (s *server) free() {
	if err := errors.Join(unix.Close(s.fd), s.pool.release()); err != nil {
		s.log.Error("releasing a FUSE connection failed", "err", err)
	}
	close(s.freed)
}

// errnoOf is what the loop device is told about err.
func errnoOf(err error) unix.Errno {
	switch {
	case errors.Is(err, volume.ErrNoSpace):
		return unix.ENOSPC
	case errors.Is(err, volume.ErrUnsupported):
		return unix.EOPNOTSUPP
	}
	return unix.EIO
}
