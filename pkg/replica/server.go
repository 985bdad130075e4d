package replica

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Defaults of Options.
const (
	DefaultWritebackBytes = 32 << 20
	DefaultMaxDirtyBytes  = 1 << 30
)

// Options says what a Server serves.
type Options struct {
	Pools  []Pool       // not owned; close them after the Server
	Logger *slog.Logger // nil means none
	// LoopAttached tells whether a loop device has bound the image at path. Nil
	// means never.
	LoopAttached func(path string) (bool, error)
	// WritebackBytes: after so many written bytes a session starts to write them
	// back, so that a flush finds little left to do; from then on it is what the
	// disk is seen to bear, see dirtBound. 0 means the default.
	WritebackBytes int64
	// MaxDirtyBytes: a session's writes wait for write-back when so many bytes
	// are waiting for it, or fewer if the disk is slow, so that no flush takes longer
	// than the mirror's patience. 0 means the default.
	MaxDirtyBytes int64
	// Files opens images and maps; nil means the kernel's.
	Files Files
	// Background runs what sessions do by themselves; nil means goroutines and
	// timers.
	Background Background
	// Grain is the replica's unit of tracking; the zero value means the default. A
	// pool must always be opened with the same.
	Grain Grain
}

// Server has the replicas in a node's pools.
type Server struct {
	opts  Options
	pools map[string]Pool
	// files is opts.Files; tests that need a disk that fails replace it.
	files Files

	mu       sync.Mutex
	replicas map[volume.UID]*replica // guarded by mu
	// making holds the UIDs that Create works on. Guarded by mu.
	making map[volume.UID]struct{}
	closed bool // guarded by mu
}

// Info is what is known of a replica. Sizes are in bytes.
type Info struct {
	Volume         volume.ID // empty when its record can't be read
	UID            volume.UID
	Pool           string
	SizeBytes      int64
	AllocatedBytes int64
	Guaranteed     bool
	Epoch          volume.Epoch
	Session        volume.Session
	// Failure says why it must not be trusted; empty when sound.
	Failure string
}

// replica is one replica in a pool.
type replica struct {
	uid  volume.UID
	dir  string
	pool Pool
	log  *slog.Logger

	grain Grain

	// turn is owned by the operation under way; metaTurn by who writes meta.json.
	turn, metaTurn chan struct{}

	mu sync.Mutex
	// meta is what meta.json has, or is about to have: epoch and session are
	// raised before they are written, never lowered. Guarded by mu.
	meta meta
	// broken is why the replica can't be used at all; nil when it can. Guarded by mu.
	broken error
	// live is the session that was opened last, until it is drained. Guarded by mu.
	live *Session
	// ended is the last session that was opened here and is over. Guarded by mu.
	ended Name
	// claim is set while a loop export has the image. Guarded by mu.
	claim *claim
	gone  bool // deleted. Guarded by mu.
}

// NewServer finds the replicas in the pools. A damaged one is no error: it is
// listed with its Failure.
func NewServer(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if !intentBits {
		o.Logger.Error("this build keeps no write-intent bitmap: it is for measuring, and replicas that differ stay so")
	}
	if o.LoopAttached == nil {
		o.LoopAttached = func(string) (bool, error) { return false, nil }
	}
	if o.WritebackBytes <= 0 {
		o.WritebackBytes = DefaultWritebackBytes
	}
	if o.MaxDirtyBytes <= 0 {
		o.MaxDirtyBytes = DefaultMaxDirtyBytes
	}
	if o.Files == nil {
		o.Files = osFiles{}
	}
	if o.Background == nil {
		o.Background = goroutines{}
	}
	if o.Grain == (Grain{}) {
		o.Grain = Grain{RegionBytes: volume.RegionBytes, AreaRegions: areaRegions}
	}
	s := &Server{
		opts: o, pools: make(map[string]Pool), files: o.Files,
		replicas: make(map[volume.UID]*replica), making: make(map[volume.UID]struct{}),
	}
	for _, p := range o.Pools {
		if s.pools[p.Name()] != nil {
			return nil, fmt.Errorf("two pools are named %q: %w", p.Name(), volume.ErrInvalid)
		}
		s.pools[p.Name()] = p
		if err := s.discover(p); err != nil {
			return nil, fmt.Errorf("pool %s: %w", p.Name(), err)
		}
	}
	return s, nil
}

// discover loads what a pool holds. The pool has been swept when it was opened.
//
// The process before may have ended between a rename and the sync after it: then
// what is found is not durable yet, and would be gone after a power loss although
// others have relied on it. So names are synced before they are believed.
func (s *Server) discover(p Pool) error {
	if err := p.FS().SyncDir(p.ReplicasDir()); err != nil {
		return err
	}
	entries, err := p.FS().ReadDir(p.ReplicasDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		uid := volume.UID(e.Name())
		if uid.Validate() != nil {
			if !strings.HasPrefix(e.Name(), pool.TempPrefix) {
				s.opts.Logger.Warn("something in the pool is no replica", "pool", p.Name(), "name", e.Name())
			}
			continue
		}
		r := s.newReplica(p, uid)
		r.load()
		if twin := s.replicas[uid]; twin != nil {
			r.broken = fmt.Errorf("replica %s is in the pools %s and %s: %w", uid, twin.pool.Name(), p.Name(), volume.ErrCorrupt)
			twin.broken = r.broken
			s.opts.Logger.Error("a replica must not be trusted", "pool", p.Name(), "replica", uid, "error", r.broken)
			continue
		}
		if r.broken != nil {
			s.opts.Logger.Error("a replica must not be trusted", "pool", p.Name(), "replica", uid, "error", r.broken)
		} else {
			p.Adopt(uid, r.poolClaim(max(r.meta.SizeBytes, r.meta.GrowToBytes)))
		}
		s.replicas[uid] = r
	}
	return nil
}

func (s *Server) newReplica(p Pool, uid volume.UID) *replica {
	return &replica{
		uid: uid, pool: p, dir: filepath.Join(p.ReplicasDir(), string(uid)),
		grain: s.opts.Grain,
		log:   s.opts.Logger.With("replica", uid, "pool", p.Name()),
		turn:  make(chan struct{}, 1), metaTurn: make(chan struct{}, 1),
	}
}

// lookup finds a replica; ErrNotFound.
func (s *Server) lookup(uid volume.UID) (*replica, error) {
	if err := uid.Validate(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("replica server: %w", volume.ErrClosed)
	}
	r := s.replicas[uid]
	if r == nil {
		return nil, fmt.Errorf("replica %s: %w", uid, volume.ErrNotFound)
	}
	return r, nil
}

func (s *Server) all() []*replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*replica, 0, len(s.replicas))
	for _, r := range s.replicas {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *replica) int { return strings.Compare(string(a.uid), string(b.uid)) })
	return out
}

// List returns all replicas, damaged ones too, sorted by UID.
func (s *Server) List() []Info {
	var out []Info
	for _, r := range s.all() {
		out = append(out, r.info())
	}
	return out
}

// Get returns one replica; ErrNotFound.
func (s *Server) Get(uid volume.UID) (Info, error) {
	r, err := s.lookup(uid)
	if err != nil {
		return Info{}, err
	}
	return r.info(), nil
}

// Close ends all sessions with ErrClosed and waits until their I/O is done. What
// loop devices serve goes on. The pools stay open.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, r := range s.all() {
		r.mu.Lock()
		live := r.live
		r.mu.Unlock()
		if live != nil {
			live.end(fmt.Errorf("replica %s: the replica server stops: %w", r.uid, volume.ErrClosed))
			<-live.gate.empty
		}
	}
	return nil
}

// take waits for a turn.
func take(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for an operation on the replica: %w (%w)", volume.ErrPending, ctx.Err())
	}
}
