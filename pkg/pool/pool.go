package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Defaults of Options.
const (
	DefaultOverProvision = 2.0
	// The default reserve is a fiftieth of the capacity, at least 64 MiB.
	defaultReserveShare = 50
	minDefaultReserve   = 64 << 20
)

// TempPrefix starts the names in ReplicasDir that Open sweeps away.
const TempPrefix = ".tmp-"

const (
	identityFile = "pool.json"
	replicasDir  = "replicas"
	probePrefix  = ".probe-"
)

// Options says which directory is the pool.
type Options struct {
	Name string // a DNS-1123 label, unique on the node
	Path string // an existing directory, absolute
	// ReserveBytes is never given out; 0 means a fiftieth of the capacity, at
	// least 64 MiB.
	ReserveBytes int64
	// OverProvision is the limit of promised over usable bytes; 0 means 2.
	OverProvision float64
	Logger        *slog.Logger // nil means none
	FS            FS           // nil means OS
}

type identity struct {
	UID  volume.UID `json:"uid"`
	Name string     `json:"name"`
}

// Check implements Body.
func (i *identity) Check() error {
	if i.UID.Validate() != nil || volume.ValidatePoolName("name", i.Name) != nil {
		return fmt.Errorf("uid %q and name %q are no identity: %w", i.UID, i.Name, volume.ErrCorrupt)
	}
	return nil
}

// Pool is an open pool. It is this process's alone until Close.
type Pool struct {
	opts Options
	id   identity
	dir  *os.File // holds the flock; also for statfs

	// budget is what thin writes may still consume before free space is looked
	// at again, in bytes.
	budget atomic.Int64

	mu sync.Mutex
	// claims by replica. Invariant: every replica in the pool has one. Guarded by mu.
	claims map[volume.UID]Claim
}

// Open opens the pool in a directory, and makes it one on first use. It waits
// for another process's lock until ctx ends, at most some seconds.
//
// Errors: ErrInvalid (options), ErrNotFound (no such directory), ErrUnsupported
// (its file system can't hold replicas; says what to do), ErrPrecondition (in
// use by another process, another pool, or not empty and not a pool),
// ErrCorrupt and ErrFormatVersion (pool.json).
func Open(ctx context.Context, o Options) (*Pool, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(o.Path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pool %s: %s does not exist (a disk that is not mounted?): %w", o.Name, o.Path, volume.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", o.Name, err)
	}
	p := &Pool{opts: o, dir: dir, claims: make(map[volume.UID]Claim)}
	if err := p.start(ctx); err != nil {
		_ = dir.Close() // drops the lock; nothing was written through it
		return nil, fmt.Errorf("pool %s at %s: %w", o.Name, o.Path, err)
	}
	return p, nil
}

// Validate says whether Open can use the options, whatever the path holds:
// ErrInvalid names the field.
func (o *Options) Validate() error {
	if err := volume.ValidatePoolName("pool.name", o.Name); err != nil {
		return err
	}
	if !filepath.IsAbs(o.Path) || filepath.Clean(o.Path) != o.Path {
		return volume.Invalid("pool.path", o.Path, "an absolute path without '.', '..' or a trailing '/'")
	}
	if o.ReserveBytes < 0 {
		return volume.Invalid("pool.reserve", strconv.FormatInt(o.ReserveBytes, 10), "zero (the default) or positive, in bytes")
	}
	if o.OverProvision != 0 && !(o.OverProvision >= 1 && o.OverProvision <= 1000) { // NaN is not
		return volume.Invalid("pool.overProvision", fmt.Sprint(o.OverProvision), "zero (the default), or between 1 and 1000")
	}
	return nil
}

func (o *Options) complete() error {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.OverProvision == 0 {
		o.OverProvision = DefaultOverProvision
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = OS{}
	}
	return nil
}

func (p *Pool) start(ctx context.Context) error {
	if err := lockExclusive(ctx, p.dir); err != nil {
		return err
	}
	if err := checkFilesystem(p.dir); err != nil {
		return err
	}
	id, ok, err := readIdentity(p.path(identityFile))
	switch {
	case err != nil:
		return err
	case !ok:
		if id, err = p.establish(); err != nil {
			return err
		}
	case id.Name != p.opts.Name:
		return fmt.Errorf("this directory is the pool %q (%s): %w", id.Name, id.UID, volume.ErrPrecondition)
	}
	p.id = id
	st, err := p.statfs()
	if err != nil {
		return err
	}
	if p.opts.ReserveBytes == 0 {
		p.opts.ReserveBytes = max(st.capacity/defaultReserveShare, minDefaultReserve)
	}
	return p.sweep()
}

// establish makes the directory a pool. pool.json comes last: a crash before it
// leaves a directory that the next Open establishes again.
func (p *Pool) establish() (identity, error) {
	if err := p.checkVirgin(); err != nil {
		return identity{}, err
	}
	if err := probeReflink(p.opts.FS, p.opts.Path); err != nil {
		return identity{}, err
	}
	if err := p.opts.FS.Mkdir(p.ReplicasDir()); err != nil && !errors.Is(err, os.ErrExist) {
		return identity{}, err
	}
	id := identity{UID: volume.UID(uuid.NewString()), Name: p.opts.Name}
	if err := WriteRecord(p.opts.FS, p.path(identityFile), KindPool, &id); err != nil {
		return identity{}, err
	}
	p.opts.Logger.Info("made a new pool", "pool", id.Name, "uid", id.UID, "path", p.opts.Path)
	return id, nil
}

// checkVirgin refuses directories that hold something that isn't ours, and such
// as have replicas but lost their pool.json.
func (p *Pool) checkVirgin() error {
	entries, err := os.ReadDir(p.opts.Path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "lost+found", name == identityFile+".tmp", strings.HasPrefix(name, probePrefix):
		case name == replicasDir:
			inside, err := os.ReadDir(p.ReplicasDir())
			if err != nil {
				return err
			}
			for _, r := range inside {
				if !strings.HasPrefix(r.Name(), TempPrefix) {
					return fmt.Errorf("%s is missing, but there are replicas (%s): %w", identityFile, r.Name(), volume.ErrCorrupt)
				}
			}
		default:
			return fmt.Errorf("the directory is not empty (%q) and is no pool: %w", name, volume.ErrPrecondition)
		}
	}
	return nil
}

// sweep removes what a crash left behind.
func (p *Pool) sweep() error {
	for dir, stale := range map[string]func(string) bool{
		p.opts.Path:     func(n string) bool { return n == identityFile+".tmp" || strings.HasPrefix(n, probePrefix) },
		p.ReplicasDir(): func(n string) bool { return strings.HasPrefix(n, TempPrefix) },
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !stale(e.Name()) {
				continue
			}
			if err := p.opts.FS.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
			p.opts.Logger.Info("swept what a crash left", "pool", p.id.Name, "name", e.Name())
		}
	}
	return nil
}

// lockWait bounds how long a successor waits for the end of a process that was
// just killed.
const lockWait = 3 * time.Second

// lockExclusive takes the flock on f, waiting a little for a dying holder.
func lockExclusive(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is locked by another process: %w", f.Name(), volume.ErrPrecondition)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *Pool) path(name string) string { return filepath.Join(p.opts.Path, name) }

// Name is the pool's name on its node.
func (p *Pool) Name() string { return p.id.Name }

// UID is the pool's identity, a random UUID.
func (p *Pool) UID() string { return string(p.id.UID) }

// Path is the pool's directory.
func (p *Pool) Path() string { return p.opts.Path }

// ReplicasDir is the directory that holds one directory for each replica.
func (p *Pool) ReplicasDir() string { return p.path(replicasDir) }

// FS is how to change things in the pool.
func (p *Pool) FS() FS { return p.opts.FS }

// Close drops the lock. Whoever uses the pool must have stopped before.
func (p *Pool) Close() error { return p.dir.Close() }
