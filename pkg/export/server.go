package export

import (
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// server answers the requests of one FUSE connection out of a block.Device.
type server struct {
	fd     int // /dev/fuse, blocking
	dev    block.Device
	pool   *bufferPool
	log    *slog.Logger
	opened atomic.Bool // the one OPEN that is allowed has happened
	dead   atomic.Bool // the connection is gone
	gone   chan struct{}
	once   sync.Once
	exited sync.WaitGroup // readers
	freed  chan struct{}  // closed when descriptor and buffers are released
}

// newServer takes over fd, on which INIT has been answered.
func newServer(fd int, dev block.Device, log *slog.Logger) (*server, error) {
	s := &server{fd: fd, dev: dev, log: log, gone: make(chan struct{}), freed: make(chan struct{})}
	pool, err := newBufferPool(s)
	if err != nil {
		return nil, err
	}
	s.pool = pool
	return s, nil
}

// start starts the readers, which end when the connection does.
func (s *server) start(threads int) {
	for range threads {
		s.exited.Go(s.serve)
	}
	go func() {
		s.exited.Wait()
		s.lost()
		if s.pool.close() {
			s.free()
		}
	}()
}

// serve is one reader. Its thread is locked to it, so that a blocked read(2)
// wakes up straight into this loop.
func (s *server) serve() {
	runtime.LockOSThread()
	for {
		sl := s.pool.get()
		if sl == nil {
			return
		}
		in := sl.mem[s.pool.page-requestHeaderBytes:]
		n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in)))
		switch {
		case errno == 0 && n > 0:
			s.handle(sl, in[:n])
		case errno == unix.EINTR, errno == unix.EAGAIN, errno == unix.ENOENT: // ENOENT: the request was interrupted before we read it
			s.drop(sl)
		default: // ENODEV: unmounted or aborted
			if errno != unix.ENODEV {
				s.log.Error("reading FUSE requests failed", "bytes", n, "err", errno)
			}
			s.drop(sl)
			return
		}
	}
}

// handle answers a request, or submits it to the device.
func (s *server) handle(sl *slot, in []byte) {
	r, err := decode(in)
	sl.unique = r.unique
	if err != nil {
		s.log.Error("the kernel sent a FUSE request that can't be decoded", "err", err)
		s.reply(sl, unix.EINVAL, 0)
		return
	}
	payload := sl.mem[s.pool.page:]
	switch r.op {
	case opRead:
		s.submit(sl, block.IO{Op: block.OpRead, Off: r.off, Len: r.length, Data: payload[:r.length:r.length]})
	case opWrite:
		s.submit(sl, block.IO{Op: block.OpWrite, Off: r.off, Len: r.length, Data: r.payload})
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
			return
		}
		putAttrOut(payload, s.dev.Size())
		s.reply(sl, 0, attrOutBytes)
	case opOpen:
		// The loop device is the one way to the data: a second one would have
		// a page cache of its own.
		if s.opened.Swap(true) {
			s.reply(sl, unix.EBUSY, 0)
			return
		}
		putOpenOut(payload)
		s.reply(sl, 0, openOutBytes)
	case opStatfs:
		putStatfsOut(payload)
		s.reply(sl, 0, statfsOutBytes)
	case opRelease, opDestroy:
		s.reply(sl, 0, 0)
	case opForget, opBatchForget: // have no reply
		s.drop(sl)
	default: // INTERRUPT, FLUSH, GETXATTR, LSEEK, ...: the kernel then stops asking
		s.reply(sl, unix.ENOSYS, 0)
	}
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

func (s *server) submit(sl *slot, io block.IO) {
	io.User, io.Done = sl, complete
	sl.io = io
	s.pool.charge(sl, int64(len(io.Data)))
	s.dev.Submit(&sl.io)
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

// reply sends the n bytes that stand in the payload, or errno, and returns the
// slot.
func (s *server) reply(sl *slot, errno unix.Errno, n int) {
	out := sl.mem[s.pool.page-outHeaderBytes:]
	putOutHeader(out, sl.unique, errno, n)
	for {
		_, _, e := unix.Syscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&out[0])), uintptr(outHeaderBytes+n))
		if e == unix.EINTR {
			continue
		}
		// ENOENT: the request was aborted in the meantime; ENODEV: unmounted.
		if e != 0 && e != unix.ENOENT && e != unix.ENODEV {
			s.log.Error("replying to a FUSE request failed", "err", e)
		}
		break
	}
	s.drop(sl)
}

// drop returns a slot, and releases everything if it was the last one.
func (s *server) drop(sl *slot) {
	n := int64(len(sl.io.Data))
	sl.io = block.IO{}
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
