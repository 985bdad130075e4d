package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Session is one opening of a replica: a block.Device whose Submit does the I/O
// in the caller's thread and calls Done before it returns. It ends when a newer
// one is opened (I/O is then refused with ErrFenced), when the replica fails
// (ErrFailed), is deleted, or by Close (ErrClosed); never by itself.
type Session struct {
	server *Server
	r      *replica
	name   Name
	img    Image
	// regions has the bits that a change needs first. Invariant: open as img is.
	regions *regions
	thin    bool // writes ask the pool first
	direct  bool // its I/O goes to the disk, not to the page cache
	size    atomic.Int64

	// gate counts I/O under way. Invariant: img is open while anyone is inside.
	gate gate

	// connected: an NBD connection was made to it; there is only one, ever.
	connected atomic.Bool
	failing   sync.Once

	flusher   flusher
	writeback writeback

	mu     sync.Mutex
	reason error         // why it is over; nil while it lives. Guarded by mu.
	hooks  []func(error) // to be called when it is over. Guarded by mu.
}

func newSession(server *Server, r *replica, name Name, img Image, regions *regions) *Session {
	s := &Session{server: server, r: r, name: name, img: img, regions: regions}
	regions.lazily = func() { server.opts.Background.After(sweepAfter, s.sweep) }
	regions.ahead.soon = func() { server.opts.Background.Go(s.markAhead) }
	s.gate.init(s.settle)
	s.flusher.init()
	s.writeback.init(func() { server.opts.Background.Go(s.writeBackRound) })
	return s
}

// Name is the export name under which an NBD client reaches the session.
func (s *Session) Name() Name { return s.name }

// Size implements block.Device.
func (s *Session) Size() int64 { return s.size.Load() }

// onEnd has hook called once, when the session is over for another reason than
// its own Close; at once if it is over already.
func (s *Session) onEnd(hook func(error)) {
	if hook == nil {
		return
	}
	s.mu.Lock()
	reason := s.reason
	if reason == nil {
		s.hooks = append(s.hooks, hook)
	}
	s.mu.Unlock()
	if reason != nil {
		hook(reason)
	}
}

// settle runs when the session is over and nothing is under way.
func (s *Session) settle() {
	if err := errors.Join(s.img.Close(), s.regions.close()); err != nil {
		s.r.log.Warn("close the image", "error", err)
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.r.live == s {
		s.r.live = nil
	}
	s.r.ended = s.name
}

// why is the reason for which the session is over.
func (s *Session) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// stop lets no more I/O in. The first reason stays; it reports whether this was
// it.
func (s *Session) stop(reason error) bool {
	s.mu.Lock()
	first := s.reason == nil
	if first {
		s.reason = reason
	}
	s.mu.Unlock()
	if !first {
		return false
	}
	// The reason is set before the gate shuts, so that whoever is refused finds it.
	s.writeback.stop()
	s.gate.shut()
	return true
}

// end stops the session and tells those who asked. It does not wait: gate.empty
// is closed when the last I/O is done and the image is closed.
func (s *Session) end(reason error) {
	if !s.stop(reason) {
		return
	}
	s.r.log.Info("a session is over", "volume", s.name.Volume, "epoch", s.name.Epoch, "session", s.name.Session, "reason", reason)
	s.tell()
}

func (s *Session) tell() {
	s.mu.Lock()
	hooks, reason := s.hooks, s.reason
	s.hooks = nil
	s.mu.Unlock()
	for _, hook := range hooks {
		hook(reason)
	}
}

// fail marks the replica failed, durably, and returns the error to answer with.
// It is called by an I/O that is under way. Whoever else fails at the same time
// waits here until the mark is durable.
func (s *Session) fail(op string, cause error) error {
	err := fmt.Errorf("replica %s: %s: %w (%w)", s.r.uid, op, volume.ErrFailed, cause)
	s.failing.Do(func() {
		s.stop(err) // nothing more is acknowledged
		s.r.markFailed(fmt.Sprintf("%s: %v", op, cause))
		s.tell()
	})
	return err
}

// Close ends the session and returns when its I/O is done. It does not flush.
func (s *Session) Close() error {
	s.mu.Lock()
	s.hooks = nil
	s.mu.Unlock()
	s.end(fmt.Errorf("replica %s: epoch %d session %d: %w", s.r.uid, s.name.Epoch, s.name.Session, volume.ErrClosed))
	<-s.gate.empty
	return nil
}

// Grow makes the replica at least size bytes large; see Server.Grow.
func (s *Session) Grow(ctx context.Context, size int64) error {
	return s.server.Grow(ctx, s.r.uid, s.name.Epoch, s.name.Session, size)
}

// Submit implements block.Device.
func (s *Session) Submit(io *block.IO) {
	if !s.gate.enter() {
		io.Done(io, s.why())
		return
	}
	s.serve(io)
}

// serve does a request that is counted in.
func (s *Session) serve(io *block.IO) {
	err := block.CheckRange(io, s.size.Load())
	if err == nil {
		err = s.do(io)
	}
	io.Done(io, err)
	s.gate.leave()
}

func (s *Session) do(io *block.IO) error {
	if io.Op != block.OpRead && io.Op != block.OpFlush {
		if err := s.intend(io.Off, io.Len); err != nil {
			return err
		}
	}
	switch io.Op {
	case block.OpRead:
		if err := s.img.ReadAt(io.Data, io.Off); err != nil {
			return fmt.Errorf("replica %s: %w", s.r.uid, diskError(err))
		}
		return nil
	case block.OpWrite:
		return s.write(io)
	case block.OpFlush:
		return s.flush()
	case block.OpTrim:
		return s.after(io, s.img.Punch(io.Off, io.Len))
	case block.OpWriteZeroes:
		return s.writeZeroes(io)
	}
	return fmt.Errorf("%s: %w", io.Op, volume.ErrInvalid) // CheckRange has refused it
}

func (s *Session) write(io *block.IO) error {
	if err := s.admit(io.Off, io.Len); err != nil {
		return err
	}
	if io.FUA {
		// What is short here says nothing about the disk: a flush does it, too.
		if err := s.img.WriteDurable(io.Data, io.Off); !errors.Is(err, errNotBegun) {
			return s.changed(io, err)
		}
		return s.after(io, s.img.WriteAt(io.Data, io.Off))
	}
	if err := s.img.WriteAt(io.Data, io.Off); err != nil {
		return s.changed(io, err)
	}
	s.writeback.wrote(io.Len)
	return nil
}

func (s *Session) writeZeroes(io *block.IO) error {
	if !io.NoHole {
		return s.after(io, s.img.Punch(io.Off, io.Len))
	}
	if err := s.admit(io.Off, io.Len); err != nil {
		return err
	}
	return s.after(io, s.img.Zero(io.Off, io.Len))
}

// after ends a change that is not durable by itself.
func (s *Session) after(io *block.IO, err error) error {
	if err == nil && io.FUA {
		return s.flush()
	}
	return s.changed(io, err)
}

// changed sorts a change's error: a full pool, what the file system can't do and
// what there was no memory for leave the replica sound, everything else fails it.
// What a change that was not answered well has left there differs from other
// replicas, perhaps; its intent bits say so.
func (s *Session) changed(io *block.IO, err error) error {
	if err == nil {
		return nil
	}
	err = diskError(err)
	if errors.Is(err, volume.ErrNoSpace) || errors.Is(err, volume.ErrUnsupported) || errors.Is(err, volume.ErrUnavailable) {
		return fmt.Errorf("replica %s: %s: %w", s.r.uid, io.Op, err)
	}
	return s.fail(io.Op.String(), err)
}

// admit asks the pool. When space is short, a write to where there is space
// already passes all the same: a file system whose overwrites wait could never
// delete a file and trim.
func (s *Session) admit(off, n int64) error {
	if !s.thin {
		return nil
	}
	err := s.r.pool.Admit(n)
	if err == nil || (errors.Is(err, volume.ErrNoSpace) && s.img.Allocated(off, n)) {
		return nil
	}
	return fmt.Errorf("replica %s: %w", s.r.uid, err)
}

func (s *Session) flush() error {
	if mutant.On("flush-unsynced") {
		return nil
	}
	return s.flusher.flush(func() error {
		upTo, _ := s.writeback.mark()
		if err := s.img.Sync(); err != nil {
			return s.fail("flush", err)
		}
		s.writeback.synced(upTo)
		return nil
	})
}

// BlockStatus describes n bytes from off on, or fewer, as data and holes.
func (s *Session) BlockStatus(off, n int64) ([]block.Extent, error) {
	if !s.gate.enter() {
		return nil, s.why()
	}
	defer s.gate.leave()
	if off < 0 || n < 0 || off > s.Size() || n > s.Size()-off {
		return nil, fmt.Errorf("block status at %d+%d: %w", off, n, volume.ErrOutOfRange)
	}
	return s.img.Extents(off, n)
}

// diskError adds the sentinel to what the kernel calls it.
func diskError(err error) error {
	switch {
	case errors.Is(err, volume.ErrNoSpace):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w (%w)", volume.ErrNoSpace, err)
	case errors.Is(err, unix.ENOMEM): // of this node, not of the disk
		return fmt.Errorf("%w (%w)", volume.ErrUnavailable, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w (%w)", volume.ErrUnsupported, err)
	}
	return err
}

// Incarnation names the time through which the replica has forgotten nothing that
// was written to it, flushed or not.
func (s *Session) Incarnation() volume.Incarnation { return s.r.pool.Incarnation() }
