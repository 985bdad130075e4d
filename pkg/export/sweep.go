package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// probeWait is how long Sweep waits for a sign of life from a FUSE mount.
const probeWait = 5 * time.Second

// Sweep removes what a dead process left of its FUSE exports in dir or below:
// their loop devices are detached (those still in use, as soon as their last
// user lets go), their mounts and mount points removed. A mount whose server
// answers is not touched, and makes Sweep answer ErrPrecondition.
func Sweep(ctx context.Context, dir string, log *slog.Logger) error {
	dir, err := realDir(dir)
	if err != nil || dir == "" {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var all []error
	for _, m := range mounts {
		if m.fstype == fuseType && strings.HasPrefix(m.point, dir+"/") {
			all = append(all, sweepMount(ctx, m.point, log))
		}
	}
	return errors.Join(all...)
}

// realDir is dir as the kernel shows it, or "" if it does not exist.
func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	abs, err = filepath.EvalSymlinks(abs)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return abs, err
}

func sweepMount(ctx context.Context, point string, log *slog.Logger) error {
	if serves(ctx, point) {
		return fmt.Errorf("the export at %s is served by a live process: %w", point, volume.ErrPrecondition)
	}
	numbers, err := loopNumbers()
	if err != nil {
		return err
	}
	// The loop devices first: without the mount their backing has no name.
	var all []error
	for _, n := range numbers {
		name, err := backingName(n)
		if err != nil || name != point {
			continue
		}
		device, err := releaseLoop(ctx, n, name)
		all = append(all, err)
		log.Info("detached the loop device of a dead export", "device", device, "mount", point)
	}
	err = detached(ctx, "unmount "+point, func() error { return unmountFUSE(point) })
	if err == nil {
		log.Info("removed the mount of a dead export", "mount", point)
		err = os.Remove(point)
		_ = os.Remove(filepath.Dir(point)) // unless it holds something else
	}
	return errors.Join(append(all, err)...)
}

// releaseLoop makes loop device n go away now, or once its last user is gone.
func releaseLoop(ctx context.Context, n int, name string) (device string, err error) {
	l := &loopDevice{number: n, name: name}
	return l.path(), detached(ctx, "detach "+l.path(), func() error {
		f, err := os.Open(l.path())
		if err != nil {
			return err
		}
		defer f.Close()
		if !l.attached() {
			return nil
		}
		return clearFD(f)
	})
}

// serves says whether somebody answers for the FUSE file at point. A process
// that lives but doesn't answer counts as dead: its connection is about to be
// aborted.
func serves(ctx context.Context, point string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	return detached(ctx, "statx "+point, func() error {
		var st unix.Statx_t
		return unix.Statx(unix.AT_FDCWD, point, unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st)
	}) == nil
}
