package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// OpenOptions says who opens what. Epoch and Session are positive.
type OpenOptions struct {
	Volume  volume.ID
	UID     volume.UID
	Epoch   volume.Epoch
	Session volume.Session
	Holder  volume.NodeID // the node whose mirror opens it
	Nonce   string        // with which that took the epoch; see Opening
	Direct  bool          // direct I/O on the image (cache mode "none"); not for ClaimLoop
	// OnEnd is called once when the session is over for another reason than its
	// own Close: fenced, failed, deleted, or the Server closed. It must not block.
	// Nil is allowed; not for ClaimLoop.
	OnEnd func(error)
}

func (o *OpenOptions) check() error {
	if err := errors.Join(o.Volume.Validate(), o.UID.Validate(), o.Holder.Validate()); err != nil {
		return fmt.Errorf("open replica: %w", err)
	}
	if o.Epoch == 0 || o.Session == 0 {
		return fmt.Errorf("open replica %s: epoch %d and session %d must be positive: %w", o.UID, o.Epoch, o.Session, volume.ErrInvalid)
	}
	if len(o.Nonce) > maxNonceBytes {
		return volume.Invalid("nonce", o.Nonce, fmt.Sprintf("at most %d bytes", maxNonceBytes))
	}
	return nil
}

const maxNonceBytes = 128

func (o *OpenOptions) opening() Opening {
	return Opening{Epoch: o.Epoch, Session: o.Session, Holder: o.Holder, Nonce: o.Nonce}
}

func (o *OpenOptions) name() Name {
	return Name{Volume: o.Volume, UID: o.UID, Epoch: o.Epoch, Session: o.Session}
}

// claim is a loop export's hold on an image.
type claim struct{ lock *os.File }

// Open fences and opens: it makes epoch and session durable, ends the older
// session, waits until its last I/O is done, and returns the new session. The
// opening may be repeated by the same holder while its session lives: it gets
// the same one. A session that is over is not opened again: a mirror that lost
// it takes the next number.
//
// Errors: ErrFenced (a newer epoch or session was seen; the text has it),
// ErrFailed, ErrCorrupt, ErrFormatVersion, ErrNotFound, ErrPrecondition (a loop
// device or another process has the image), ErrPending (ctx ended while another
// operation or the older session's I/O was under way; the older one is fenced).
func (s *Server) Open(ctx context.Context, o OpenOptions) (*Session, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	r, err := s.lookup(o.UID)
	if err != nil {
		return nil, err
	}
	if err := take(ctx, r.turn); err != nil {
		return nil, err
	}
	defer func() { <-r.turn }()
	if err := r.usable(); err != nil {
		return nil, err
	}
	same, err := r.fence(o)
	if err != nil {
		return nil, err
	}
	if same != nil {
		same.onEnd(o.OnEnd)
		return same, nil
	}
	if err := s.unclaimed(r); err != nil {
		return nil, err
	}
	if err := s.notBound(r); err != nil {
		return nil, err
	}
	if err := r.takeOver(ctx, o); err != nil {
		return nil, err
	}
	return s.start(r, o)
}

// ClaimLoop is Open for a volume that a loop device serves straight from the
// image: the same check, persistence and draining, then it returns the image's
// path. Until release is called, Open, Delete and another ClaimLoop are refused.
// A loop device may be attached already: one that outlived the process before.
func (s *Server) ClaimLoop(ctx context.Context, o OpenOptions) (path string, release func(), err error) {
	if err := o.check(); err != nil {
		return "", nil, err
	}
	r, err := s.lookup(o.UID)
	if err != nil {
		return "", nil, err
	}
	if err := take(ctx, r.turn); err != nil {
		return "", nil, err
	}
	defer func() { <-r.turn }()
	if err := r.usable(); err != nil {
		return "", nil, err
	}
	if err := s.unclaimed(r); err != nil {
		return "", nil, err
	}
	if _, err := r.fence(o); err != nil {
		return "", nil, err
	}
	if err := r.takeOver(ctx, o); err != nil {
		return "", nil, err
	}
	return r.claimImage()
}

func (r *replica) claimImage() (string, func(), error) {
	f, err := os.OpenFile(r.imagePath(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", nil, fmt.Errorf("replica %s: %w", r.uid, err)
	}
	if err := lockImage(int(f.Fd()), f.Name()); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	c := &claim{lock: f}
	r.mu.Lock()
	r.claim = c
	r.mu.Unlock()
	var once sync.Once
	release := func() {
		once.Do(func() {
			r.mu.Lock()
			r.claim = nil
			r.mu.Unlock()
			if err := c.lock.Close(); err != nil {
				r.log.Warn("release the image", "error", err)
			}
		})
	}
	return r.imagePath(), release, nil
}

func (s *Server) unclaimed(r *replica) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claim != nil {
		return fmt.Errorf("replica %s is exported by a loop device: %w", r.uid, volume.ErrPrecondition)
	}
	return nil
}

// fence decides whether o may open: only if (epoch, session) is higher than what
// was seen, or the same from the same holder. In the latter case it returns the
// session that lives. The same numbers from the same holder with no session here
// are an opening that was cut short, or one before this process started; they
// are let in, for an epoch and session are only ever used by one mirror, which
// gives up a session for good when its connection breaks.
func (r *replica) fence(o OpenOptions) (*Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.meta
	if m.Volume != o.Volume {
		return nil, fmt.Errorf("replica %s belongs to volume %s, not %s: %w", r.uid, m.Volume, o.Volume, volume.ErrInvalid)
	}
	refused := fmt.Errorf("replica %s: epoch %d session %d of %s is refused, it has seen epoch %d session %d of %s: %w",
		r.uid, o.Epoch, o.Session, o.Holder, m.Epoch, m.Session, m.Holder, volume.ErrFenced)
	admission := Admit(Opening{m.Epoch, m.Session, m.Holder, m.Nonce}, o.opening())
	switch {
	case admission == Newer:
		return nil, nil
	case admission == Older:
		return nil, refused
	case r.live != nil && r.live.name == o.name() && !r.live.gate.isShut():
		return r.live, nil
	case r.ended == o.name(), r.live != nil && r.live.name == o.name():
		return nil, fmt.Errorf("replica %s: epoch %d session %d is over, open the next session: %w", r.uid, o.Epoch, o.Session, volume.ErrFenced)
	}
	return nil, nil
}

// takeOver makes the epoch durable and the replica free of its older session.
func (r *replica) takeOver(ctx context.Context, o OpenOptions) error {
	err := r.update(func(m *meta) { m.Epoch, m.Session, m.Holder, m.Nonce = o.Epoch, o.Session, o.Holder, o.Nonce })
	if err != nil {
		return fmt.Errorf("replica %s: record epoch %d session %d: %w", r.uid, o.Epoch, o.Session, diskError(err))
	}
	reason := fmt.Errorf("replica %s: epoch %d session %d of %s took over: %w", r.uid, o.Epoch, o.Session, o.Holder, volume.ErrFenced)
	if err := r.endLive(ctx, reason); err != nil {
		return err
	}
	// The old session's last I/O may have failed the replica.
	if err := r.usable(); err != nil {
		return err
	}
	if err := r.finishGrowth(); err != nil {
		return fmt.Errorf("replica %s: finish growing: %w", r.uid, err)
	}
	if err := r.checkImage(); err != nil {
		return fmt.Errorf("replica %s: %w", r.uid, err)
	}
	return nil
}

// endLive ends the live session, if any, and waits until it is drained.
func (r *replica) endLive(ctx context.Context, reason error) error {
	r.mu.Lock()
	live := r.live
	r.mu.Unlock()
	if live == nil || mutant.On("keep-old-session") {
		return nil
	}
	live.end(reason)
	select {
	case <-live.gate.empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("replica %s: the I/O of epoch %d session %d is still under way: %w (%w)",
			r.uid, live.name.Epoch, live.name.Session, volume.ErrPending, ctx.Err())
	}
}

// start makes the session.
func (s *Server) start(r *replica, o OpenOptions) (*Session, error) {
	mode := Buffered
	if o.Direct {
		mode = Direct
	}
	img, err := s.files.OpenImage(r.imagePath(), mode)
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", r.uid, err)
	}
	m := r.snapshot()
	regions, err := s.openRegions(r, m.SizeBytes)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("replica %s: %w", r.uid, diskError(err)), img.Close())
	}
	ses := newSession(s, r, o.name(), img, regions)
	ses.size.Store(m.SizeBytes)
	ses.thin, ses.direct = !m.Guaranteed, o.Direct
	ses.onEnd(o.OnEnd)
	if mode == Buffered {
		ses.writeback.start(dirtBound{first: s.opts.WritebackBytes, most: max(s.opts.MaxDirtyBytes, s.opts.WritebackBytes)})
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		r.mu.Lock()
		r.live = ses // from here on connections may use it
		r.mu.Unlock()
	}
	s.mu.Unlock()
	if closed { // Close has looked already, and would miss this one
		return nil, errors.Join(fmt.Errorf("replica server: %w", volume.ErrClosed), img.Close(), regions.close())
	}
	r.log.Info("opened a replica", "volume", o.Volume, "epoch", o.Epoch, "session", o.Session, "holder", o.Holder, "direct", o.Direct)
	return ses, nil
}
