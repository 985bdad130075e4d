package sim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// disk is a node's disk with its file system. What was not synced is there until
// the power goes; then each write since the last sync may be there, or not, or in
// part, and of the changes of names a first part.
//
// It is what a production replica.Server reaches: pool.FS, replica.Files and, with
// the pool's accounts, replica.Pool.
type disk struct {
	rng  *rand.Rand
	tell func(what string) // a fault struck

	names, kept map[string]*inode // by path: what is found, and what a power loss leaves
	renames     []rename          // not yet in kept

	dead    bool // the process that uses it is gone: nothing is done any more
	crashIn int  // so many operations until that; 0 means never
	failIn  int  // so many until one fails; 0 means never
	mayFail func() bool
	full    bool // no space
	failed  bool // one has failed
	boots   int  // how often the power was lost
}

// inode is a directory, a file or an image.
type inode struct {
	dir     bool
	locked  bool // an image that somebody has open
	data    []byte
	durable []byte // what a power loss leaves
	pending []pendingWrite
	img     *image
}

type pendingWrite struct {
	off int64
	p   []byte
}

// rename is one change of names: from "" makes, to "" removes.
type rename struct {
	from, to string
	node     *inode
}

var errDead = errors.New("the process is gone")

func newDisk(rng *rand.Rand, tell func(string), mayFail func() bool) *disk {
	d := &disk{rng: rng, tell: tell, mayFail: mayFail, names: map[string]*inode{}}
	for _, dir := range []string{"/", "/" + replicasDir} {
		d.names[dir] = &inode{dir: true}
	}
	d.kept = clone(d.names)
	return d
}

const replicasDir = "replicas"

func clone(m map[string]*inode) map[string]*inode {
	out := make(map[string]*inode, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// outcome is what becomes of an operation.
type outcome struct {
	part bool // it is done in part all the same
	err  error
}

// step is asked before each operation.
func (d *disk) step(what string) outcome {
	if d.dead {
		return outcome{err: errDead}
	}
	if d.crashIn > 0 {
		if d.crashIn--; d.crashIn == 0 {
			d.dead = true
			return outcome{part: d.rng.IntN(2) == 0, err: errDead}
		}
	}
	if d.failIn > 0 {
		if d.failIn--; d.failIn == 0 && d.mayFail() {
			d.failed = true
			d.tell(what)
			return outcome{part: d.rng.IntN(2) == 0, err: unix.EIO}
		}
	}
	return outcome{}
}

// change does a change of names.
func (d *disk) change(what string, r rename) error {
	o := d.step(what)
	if o.err == nil || o.part && errors.Is(o.err, errDead) { // a name that can't be changed is as it was
		apply(d.names, r)
		d.renames = append(d.renames, r)
	}
	return o.err
}

func apply(m map[string]*inode, r rename) {
	if r.from == "" {
		m[r.to] = r.node
		return
	}
	under := r.from + "/"
	moved := map[string]*inode{}
	for path, n := range m {
		if path == r.from || strings.HasPrefix(path, under) {
			delete(m, path)
			moved[r.to+path[len(r.from):]] = n
		}
	}
	if r.to != "" {
		for path, n := range moved {
			m[path] = n
		}
	}
}

// powerLoss leaves what a power loss leaves; whether something was lost.
func (d *disk) powerLoss() (lost bool) {
	d.boots++
	for _, r := range d.renames[:d.rng.IntN(len(d.renames)+1)] {
		apply(d.kept, r)
	}
	d.renames = nil
	d.names = clone(d.kept)
	for _, path := range sortedPaths(d.names) {
		lost = d.names[path].powerLoss(d.rng) || lost
	}
	return lost
}

func sortedPaths(m map[string]*inode) []string {
	out := make([]string, 0, len(m))
	for path := range m {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// restart: a new process uses it.
func (d *disk) restart() {
	d.dead, d.crashIn = false, 0
	for _, n := range d.names {
		n.locked = false
	}
}

func (n *inode) powerLoss(rng *rand.Rand) (lost bool) {
	if n.img != nil {
		return n.img.powerLoss(rng)
	}
	for _, w := range n.pending {
		p := w.p
		switch rng.IntN(4) {
		case 0:
			continue
		case 1:
			p = p[:rng.IntN(len(p)/sectorBytes+1)*sectorBytes] // torn
		}
		n.durable = place(n.durable, p, w.off)
	}
	n.pending = nil
	n.data = slices.Clone(n.durable)
	return false
}

func place(b, p []byte, off int64) []byte {
	if need := int(off) + len(p); need > len(b) {
		b = append(b, make([]byte, need-len(b))...)
	}
	copy(b[off:], p)
	return b
}

func notExist(op, path string) error { return &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist} }

// Mkdir implements pool.FS.
func (d *disk) Mkdir(path string) error {
	if d.names[path] != nil {
		return fs.ErrExist
	}
	return d.change("mkdir", rename{to: path, node: &inode{dir: true}})
}

// Create implements pool.FS.
func (d *disk) Create(path string) (pool.File, error) {
	n := &inode{}
	if filepath.Base(path) == "data.img" {
		n.img = &image{}
	}
	if err := d.change("create", rename{to: path, node: n}); err != nil {
		return nil, err
	}
	return &file{d: d, n: n}, nil
}

// Edit implements pool.FS.
func (d *disk) Edit(path string) (pool.File, error) {
	n := d.names[path]
	if n == nil {
		return nil, notExist("open", path)
	}
	return &file{d: d, n: n, off: int64(len(n.data))}, nil
}

// Rename implements pool.FS.
func (d *disk) Rename(from, to string) error {
	if d.names[from] == nil {
		return notExist("rename", from)
	}
	if n := d.names[to]; n != nil && n.dir {
		return &fs.PathError{Op: "rename", Path: to, Err: unix.ENOTEMPTY}
	}
	return d.change("rename", rename{from: from, to: to})
}

// RemoveAll implements pool.FS.
func (d *disk) RemoveAll(path string) error {
	if d.names[path] == nil {
		return nil
	}
	return d.change("remove", rename{from: path})
}

// SyncDir implements pool.FS.
func (d *disk) SyncDir(string) error {
	o := d.step("sync of a directory")
	if o.err == nil || o.part {
		for _, r := range d.renames {
			apply(d.kept, r)
		}
		d.renames = nil
	}
	return o.err
}

// Lstat implements pool.FS.
func (d *disk) Lstat(path string) (os.FileInfo, error) {
	n := d.names[path]
	if n == nil {
		return nil, notExist("lstat", path)
	}
	return info{filepath.Base(path), n}, nil
}

// ReadDir implements pool.FS.
func (d *disk) ReadDir(dir string) (out []os.DirEntry, _ error) {
	for _, path := range sortedPaths(d.names) {
		if filepath.Dir(path) == dir && path != dir {
			out = append(out, fs.FileInfoToDirEntry(info{filepath.Base(path), d.names[path]}))
		}
	}
	return out, nil
}

// ReadFile implements pool.FS.
func (d *disk) ReadFile(path string, limit int64) ([]byte, error) {
	n := d.names[path]
	if n == nil {
		return nil, notExist("open", path)
	}
	return slices.Clone(n.data[:min(int64(len(n.data)), limit+1)]), nil
}

// Allocated implements pool.FS.
func (d *disk) Allocated(string) int64 { return 0 } // for reports only

// OpenImage implements replica.Files.
func (d *disk) OpenImage(path string, _ replica.Mode) (replica.Image, error) {
	n := d.names[path]
	switch {
	case d.dead:
		return nil, errDead
	case n == nil || n.img == nil:
		return nil, notExist("open", path)
	case n.locked:
		return nil, fmt.Errorf("%s is locked: %w", path, volume.ErrPrecondition)
	}
	n.locked = true
	return &openImage{image: n.img, d: d, n: n}, nil
}

// OpenMap implements replica.Files.
func (d *disk) OpenMap(path string) (replica.MapFile, error) {
	n := d.names[path]
	if n == nil {
		f, err := d.Create(path)
		if err != nil {
			return nil, err
		}
		return f.(*file), nil
	}
	return &file{d: d, n: n}, nil
}

// Name, Path, ReplicasDir and FS implement replica.Pool.
func (d *disk) Name() string        { return "p" }
func (d *disk) Path() string        { return "/" }
func (d *disk) ReplicasDir() string { return "/" + replicasDir }
func (d *disk) FS() pool.FS         { return d }

// Claim, Adopt, Release and Admit implement replica.Pool.
func (d *disk) Claim(volume.UID, pool.Claim) error { return d.Admit(1) }
func (d *disk) Adopt(volume.UID, pool.Claim)       {}
func (d *disk) Release(volume.UID)                 {}

// Incarnation implements replica.Pool.
func (d *disk) Incarnation() volume.Incarnation {
	return volume.Incarnation(fmt.Sprint("boot ", d.boots))
}
func (d *disk) Admit(int64) error {
	if d.full {
		return fmt.Errorf("the pool is full: %w", volume.ErrNoSpace)
	}
	return nil
}

// info is what Lstat tells.
type info struct {
	name string
	n    *inode
}

func (i info) Name() string       { return i.name }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.n.dir }
func (i info) Sys() any           { return nil }
func (i info) Size() int64 {
	if i.n.img != nil {
		return int64(len(i.n.img.now)) * blockBytes
	}
	return int64(len(i.n.data))
}

func (i info) Mode() fs.FileMode {
	if i.n.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// file is an open file: pool.File and replica.MapFile.
type file struct {
	d   *disk
	n   *inode
	off int64
}

// ReadAt implements replica.MapFile.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if o := f.d.step("read"); o.err != nil {
		return 0, o.err
	}
	if off >= int64(len(f.n.data)) {
		return 0, fmt.Errorf("the end: %w", io.EOF)
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Write implements pool.File.
func (f *file) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.off)
	f.off += int64(n)
	return n, err
}

// WriteAt implements replica.MapFile.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	o := f.d.step("write")
	if o.part {
		p = p[:f.d.rng.IntN(len(p)+1)]
	}
	if o.err == nil || o.part {
		f.n.pending = append(f.n.pending, pendingWrite{off, slices.Clone(p)})
		f.n.data = place(f.n.data, p, off)
	}
	if o.err != nil {
		return 0, o.err
	}
	return len(p), nil
}

// Truncate implements pool.File.
func (f *file) Truncate(size int64) error {
	o := f.d.step("truncate")
	if o.err == nil || o.part {
		f.n.img.truncate(int(size / blockBytes))
	}
	return o.err
}

// Sync implements pool.File and replica.MapFile.
func (f *file) Sync() error {
	if f.n.img != nil {
		return (&openImage{image: f.n.img, d: f.d, n: f.n}).Sync()
	}
	o := f.d.step("sync")
	if o.err == nil || o.part {
		for _, w := range f.n.pending {
			f.n.durable = place(f.n.durable, w.p, w.off)
		}
		f.n.pending = nil
	}
	return o.err
}

// Close implements pool.File and replica.MapFile.
func (f *file) Close() error { return nil }
