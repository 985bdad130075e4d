package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func (r *replica) imagePath() string { return filepath.Join(r.dir, imageFile) }
func (r *replica) metaPath() string  { return filepath.Join(r.dir, metaFile) }

func (r *replica) regionsPath() string { return filepath.Join(r.dir, regionsFile) }

// load reads what is on disk into meta, or the reason why not into broken. It is
// called before anyone else knows the replica.
func (r *replica) load() {
	r.broken = r.read()
	if r.broken != nil {
		r.broken = fmt.Errorf("replica %s in pool %s: %w", r.uid, r.pool.Name(), r.broken)
	}
}

func (r *replica) read() error {
	st, err := r.pool.FS().Lstat(r.dir)
	if err != nil {
		return err
	}
	if !st.IsDir() { // a symlink could lead out of the pool
		return fmt.Errorf("%s is not a directory but %s: %w", r.dir, st.Mode().Type(), volume.ErrCorrupt)
	}
	if err := r.pool.FS().SyncDir(r.dir); err != nil {
		return err
	}
	var m meta
	err = pool.ReadRecord(r.pool.FS(), r.metaPath(), KindReplica, &m)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is missing: %w", metaFile, volume.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if m.UID != r.uid {
		return fmt.Errorf("%s is that of replica %s: %w", metaFile, m.UID, volume.ErrCorrupt)
	}
	r.meta = m
	return r.checkImage()
}

// checkImage compares the image with what meta says of it. It must not run
// while a growth is under way elsewhere (it is called by the turn's owner).
func (r *replica) checkImage() error {
	m := r.snapshot()
	st, err := r.pool.FS().Lstat(r.imagePath())
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is missing: %w", imageFile, volume.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file but %s: %w", imageFile, st.Mode().Type(), volume.ErrCorrupt)
	}
	if st.Size() != m.SizeBytes && (m.GrowToBytes == 0 || st.Size() != m.GrowToBytes) {
		return fmt.Errorf("%s has %d bytes instead of %d: %w", imageFile, st.Size(), m.SizeBytes, volume.ErrCorrupt)
	}
	return nil
}

// snapshot copies meta.
func (r *replica) snapshot() meta {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.meta
}

// usable says why the replica can't be opened; nil when it can.
func (r *replica) usable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.gone:
		return fmt.Errorf("replica %s was deleted: %w", r.uid, volume.ErrNotFound)
	case r.broken != nil:
		return r.broken
	case r.meta.Failure != "":
		return fmt.Errorf("replica %s: %s: %w", r.uid, r.meta.Failure, volume.ErrFailed)
	}
	return nil
}

// update changes meta.json durably. change must only raise epoch and session.
// What change did holds in memory even if writing fails: that is the safe side
// for epochs and failures, and growth checks the file.
func (r *replica) update(change func(*meta)) error {
	r.metaTurn <- struct{}{} // bounded: owners only write one small file
	defer func() { <-r.metaTurn }()
	r.mu.Lock()
	change(&r.meta)
	m := r.meta
	r.mu.Unlock()
	if mutant.On("forget-epoch") {
		m.Epoch, m.Session, m.Holder, m.Nonce = 0, 0, "", ""
	}
	if mutant.On("forget-failure") {
		m.Failure = ""
	}
	return pool.WriteRecord(r.pool.FS(), r.metaPath(), KindReplica, &m)
}

// markFailed makes it durable that the replica must not be trusted. The first
// reason stays.
func (r *replica) markFailed(reason string) {
	err := r.update(func(m *meta) {
		if m.Failure == "" {
			m.Failure = reason
		}
	})
	r.log.Error("the replica failed and will not be used again", "reason", reason, "recorded", err == nil, "error", err)
}

func (r *replica) info() Info {
	r.mu.Lock()
	m, broken := r.meta, r.broken
	r.mu.Unlock()
	i := Info{
		Volume: m.Volume, UID: r.uid, Pool: r.pool.Name(), SizeBytes: m.SizeBytes, AllocatedBytes: r.allocated(),
		Guaranteed: m.Guaranteed, Epoch: m.Epoch, Session: m.Session, Failure: m.Failure,
	}
	if broken != nil {
		i.Failure = broken.Error()
	}
	return i
}

// allocated is the space that the image takes, in bytes; 0 when it can't be told.
func (r *replica) allocated() int64 { return r.pool.FS().Allocated(r.imagePath()) }

func (r *replica) poolClaim(size int64) pool.Claim {
	return pool.Claim{Bytes: size, Guaranteed: r.meta.Guaranteed, Allocated: r.allocated}
}
