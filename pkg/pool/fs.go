package pool

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FS is the seam between what has to survive a crash and the operating system:
// every operation that makes, replaces or removes something in a pool goes
// through it, so that tests can record the order and kill at any step.
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

// readBounded reads a small regular file, following no symlink.
func readBounded(path string, limit int64) ([]byte, error) {
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
