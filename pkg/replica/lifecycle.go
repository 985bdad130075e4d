package replica

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// CreateOptions says what to create.
type CreateOptions struct {
	Volume    volume.ID
	UID       volume.UID
	Pool      string // name of one of the Server's pools
	SizeBytes int64  // a multiple of volume.SizeUnit, at least volume.MinSizeBytes
	// Guaranteed: the pool must keep room for the whole size.
	Guaranteed bool
	// Epoch is the volume's when the replica was asked for; lower ones never open it.
	Epoch volume.Epoch
}

// Create makes an empty replica, durably; repeating it is harmless.
//
// It is made under a temporary name and renamed when it is complete, so a crash
// leaves nothing, a directory that the next start sweeps, or the replica.
//
// Errors: ErrInvalid, ErrOutOfRange (size), ErrNotFound (pool), ErrNoSpace,
// ErrExists (with other properties), ErrPending, and those of a damaged one.
func (s *Server) Create(ctx context.Context, o CreateOptions) error {
	if err := errors.Join(o.Volume.Validate(), o.UID.Validate(), checkSize(o.SizeBytes), ctx.Err()); err != nil {
		return fmt.Errorf("create replica: %w", err)
	}
	p := s.pools[o.Pool]
	if p == nil {
		return fmt.Errorf("create replica %s: pool %q: %w", o.UID, o.Pool, volume.ErrNotFound)
	}
	existing, err := s.begin(o.UID)
	if err != nil {
		return err
	}
	if existing != nil {
		return existing.matches(o)
	}
	r := s.newReplica(p, o.UID)
	r.meta = meta{Volume: o.Volume, UID: o.UID, SizeBytes: o.SizeBytes, Guaranteed: o.Guaranteed, Epoch: Unopened(o.Epoch).Epoch}
	if err = p.Claim(o.UID, r.poolClaim(o.SizeBytes)); err == nil {
		if err = r.make(); err != nil {
			p.Release(o.UID)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, o.UID)
	if err != nil {
		return fmt.Errorf("create replica %s: %w", o.UID, err)
	}
	s.replicas[o.UID] = r
	r.log.Info("created a replica", "volume", o.Volume, "sizeBytes", o.SizeBytes)
	return nil
}

// begin reserves a UID for Create, or returns the replica that has it.
func (s *Server) begin(uid volume.UID) (*replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("replica server: %w", volume.ErrClosed)
	}
	if _, busy := s.making[uid]; busy {
		return nil, fmt.Errorf("replica %s is being created: %w", uid, volume.ErrPending)
	}
	if r := s.replicas[uid]; r != nil {
		return r, nil
	}
	s.making[uid] = struct{}{}
	return nil, nil
}

// matches answers a repeated Create.
func (r *replica) matches(o CreateOptions) error {
	if err := r.usable(); err != nil {
		return err
	}
	if m := r.snapshot(); m.Volume != o.Volume || m.SizeBytes != o.SizeBytes || m.Guaranteed != o.Guaranteed || r.pool.Name() != o.Pool {
		return fmt.Errorf("replica %s of volume %s, %d bytes in pool %s: %w", r.uid, m.Volume, m.SizeBytes, r.pool.Name(), volume.ErrExists)
	}
	return nil
}

// make writes the replica to disk, complete and durable, or leaves nothing.
func (r *replica) make() (err error) {
	fs := r.pool.FS()
	tmp := filepath.Join(r.pool.ReplicasDir(), pool.TempPrefix+"new-"+string(r.uid))
	if err := fs.RemoveAll(tmp); err != nil { // of an attempt that failed to clean up
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(diskError(err), fs.RemoveAll(tmp))
		}
	}()
	if err := fs.Mkdir(tmp); err != nil {
		return err
	}
	if err := makeSparse(fs, filepath.Join(tmp, imageFile), r.meta.SizeBytes); err != nil {
		return err
	}
	if err := makeRegionFile(fs, filepath.Join(tmp, regionsFile), r.uid, r.grain.regions(r.meta.SizeBytes)); err != nil {
		return err
	}
	if err := pool.WriteRecord(fs, filepath.Join(tmp, metaFile), KindReplica, &r.meta); err != nil { // syncs tmp
		return err
	}
	if err := fs.Rename(tmp, r.dir); err != nil {
		return err
	}
	if err := fs.SyncDir(r.pool.ReplicasDir()); err != nil {
		return errors.Join(err, fs.RemoveAll(r.dir))
	}
	return nil
}

func makeSparse(fs pool.FS, path string, size int64) error {
	f, err := fs.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(resize(f, size), f.Close())
}

func resize(f pool.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// Delete removes a replica and gives its space back; nil when there is none.
// Open sessions end first, and their I/O is waited for. id may be empty: a
// replica whose record is damaged is known by its UID alone.
//
// Errors: ErrInvalid (the replica is another volume's), ErrPrecondition (a loop
// device has the image), ErrPending (ctx ended first).
func (s *Server) Delete(ctx context.Context, id volume.ID, uid volume.UID) error {
	return s.remove(ctx, removal{id: id, uid: uid})
}

// removal says what to remove.
type removal struct {
	id  volume.ID
	uid volume.UID
	// refuse, if set, says why the replica must stay after all.
	refuse func(*replica) error
	// keep: to the pool's trash.
	keep bool
}

func (s *Server) remove(ctx context.Context, o removal) error {
	r, err := s.lookup(o.uid)
	if errors.Is(err, volume.ErrNotFound) {
		return s.finishDelete(o.uid)
	}
	if err != nil {
		return err
	}
	if err := take(ctx, r.turn); err != nil {
		return err
	}
	defer func() { <-r.turn }()
	if errors.Is(r.usable(), volume.ErrNotFound) { // another Delete was quicker
		return s.finishDelete(o.uid)
	}
	if err := s.deletable(r, o.id); err != nil {
		return err
	}
	if o.refuse != nil {
		if err := o.refuse(r); err != nil {
			return err
		}
	}
	if err := r.endLive(ctx, fmt.Errorf("replica %s is being deleted: %w", o.uid, volume.ErrFenced)); err != nil {
		return err
	}
	if err := s.clear(r, o); err != nil {
		return fmt.Errorf("delete replica %s: %w", o.uid, err)
	}
	r.pool.Release(o.uid)
	r.log.Info("deleted a replica", "volume", o.id, "kept", o.keep)
	return nil
}

// clear takes the replica's directory away. It is renamed first: a crash leaves a
// whole replica or one that is swept, never a part that looks damaged.
func (s *Server) clear(r *replica, o removal) error {
	fs, to := r.pool.FS(), r.deletedPath()
	if o.keep {
		var err error
		if to, err = r.trashPath(); err != nil {
			return err
		}
	} else if err := fs.RemoveAll(to); err != nil {
		return err
	}
	if err := fs.Rename(r.dir, to); err != nil {
		return err
	}
	r.mu.Lock()
	r.gone = true
	r.mu.Unlock()
	s.mu.Lock()
	delete(s.replicas, o.uid)
	s.mu.Unlock()
	if o.keep {
		return errors.Join(fs.SyncDir(filepath.Dir(to)), fs.SyncDir(r.pool.ReplicasDir()))
	}
	return errors.Join(fs.SyncDir(r.pool.ReplicasDir()), fs.RemoveAll(to))
}

func (r *replica) deletedPath() string {
	return filepath.Join(r.pool.ReplicasDir(), pool.TempPrefix+"del-"+string(r.uid))
}

// finishDelete removes what an earlier Delete could not.
func (s *Server) finishDelete(uid volume.UID) error {
	for _, p := range s.pools {
		r := s.newReplica(p, uid)
		if err := errors.Join(p.FS().SyncDir(p.ReplicasDir()), p.FS().RemoveAll(r.deletedPath())); err != nil {
			return fmt.Errorf("delete replica %s: %w", uid, err)
		}
		s.mu.Lock()
		_, making := s.making[uid]
		_, exists := s.replicas[uid]
		s.mu.Unlock()
		if !making && !exists {
			p.Release(uid)
		}
	}
	return nil
}

func (s *Server) deletable(r *replica, id volume.ID) error {
	r.mu.Lock()
	claimed, owner := r.claim != nil, r.meta.Volume
	r.mu.Unlock()
	if id != "" && owner != "" && owner != id {
		return fmt.Errorf("replica %s belongs to volume %s, not %s: %w", r.uid, owner, id, volume.ErrInvalid)
	}
	if claimed {
		return fmt.Errorf("replica %s is exported by a loop device: %w", r.uid, volume.ErrPrecondition)
	}
	return s.notBound(r)
}

// notBound is ErrPrecondition when a loop device has the image.
func (s *Server) notBound(r *replica) error {
	bound, err := s.opts.LoopAttached(r.imagePath())
	if err != nil {
		return fmt.Errorf("replica %s: look for a loop device: %w", r.uid, err)
	}
	if bound {
		return fmt.Errorf("replica %s: a loop device is attached to %s: %w", r.uid, r.imagePath(), volume.ErrPrecondition)
	}
	return nil
}
