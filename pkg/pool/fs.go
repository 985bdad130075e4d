package pool

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FS is the seam between what has to survive a crash and the operating system:
// every operation that makes, replaces, removes or looks for something in a pool's
// directories goes through it, so that tests can record the order, kill at any
// step, and have a file system that loses what was not synced.
type FS interface {
	// Mkdir makes one directory, or returns os.ErrExist.
	Mkdir(path string) error
	// Create makes a file, or empties the one there is. It follows no symlink.
	Create(path string) (File, error)
	// Edit opens an existing regular file for writing; follows no symlink.
	Edit(path string) (File, error)
	// Rename moves from over to, atomically.
	Rename(from, to string) error
	// RemoveAll removes a tree; nil when there is none.
	RemoveAll(path string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error

	// Lstat describes what the name stands for; it follows no symlink.
	Lstat(path string) (os.FileInfo, error)
	// ReadDir lists a directory, by name.
	ReadDir(path string) ([]os.DirEntry, error)
	// ReadFile reads a regular file, following no symlink, but no more than limit
	// bytes and one.
	ReadFile(path string, limit int64) ([]byte, error)
	// Allocated is the space that a file takes, in bytes; 0 when it can't be told.
	Allocated(path string) int64
}

// File is what FS opens.
type File interface {
	io.Writer
	Truncate(size int64) error
	Sync() error
	Close() error
}

// OS is the real FS.
type OS struct{}

// Mkdir implements FS.
func (OS) Mkdir(path string) error { return os.Mkdir(path, 0o700) }

// Create implements FS.
func (OS) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
}

// Edit implements FS.
func (OS) Edit(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := regular(f); err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// RemoveAll implements FS.
func (OS) RemoveAll(path string) error { return os.RemoveAll(path) }

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func regular(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file but %s", f.Name(), st.Mode().Type())
	}
	return nil
}

// Lstat implements FS.
func (OS) Lstat(path string) (os.FileInfo, error) { return os.Lstat(path) }

// ReadDir implements FS.
func (OS) ReadDir(path string) ([]os.DirEntry, error) { return os.ReadDir(path) }

// Allocated implements FS.
func (OS) Allocated(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// ReadFile implements FS.
func (OS) ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := regular(f); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, limit+1))
}
