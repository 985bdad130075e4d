package export

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// detach takes the loop device off its backing file, and waits until it really
// is. While a file system is mounted on it or somebody has it open, detach
// waits until ctx ends, then answers ErrPrecondition with the device as it was.
//
// A detach may hang in the kernel, which first writes back what is cached. Then
// detach answers ErrUnavailable at the end of ctx, and the next call waits for
// the one before.
func (l *loopDevice) detach(ctx context.Context) error {
	l.mu.Lock()
	running := l.pending
	if running == nil {
		running = make(chan struct{})
		l.pending = running
		l.mu.Unlock()
		return l.detachNow(ctx, running)
	}
	l.mu.Unlock()
	select {
	case <-running:
		return l.detach(ctx)
	case <-ctx.Done():
		return fmt.Errorf("%s: an earlier detach still hangs: %w", l.path(), volume.ErrUnavailable)
	}
}

func (l *loopDevice) detachNow(ctx context.Context, running chan struct{}) error {
	done := make(chan error, 1)
	go func() {
		err := l.detachBlocking(ctx)
		l.mu.Lock()
		l.pending = nil
		l.mu.Unlock()
		close(running)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// It has the same context, so unless it hangs it ends soon.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	select {
	case err := <-done:
		return err
	case <-grace.Done():
		return fmt.Errorf("%s: I/O is stuck, detaching hangs: %w", l.path(), volume.ErrUnavailable)
	}
}

func (l *loopDevice) detachBlocking(ctx context.Context) error {
	var last error
	asked := false
	err := poll(ctx, func() bool {
		if !l.attached() {
			last = nil
			return true
		}
		if asked {
			return false
		}
		if last = l.clear(); last != nil {
			return !errors.Is(last, unix.EBUSY)
		}
		asked = true
		return !l.attached()
	})
	switch {
	case err == nil:
		return last
	case !asked:
		return fmt.Errorf("%s is still in use%s: %w", l.path(), l.users(), volume.ErrPrecondition)
	}
	return l.keep()
}

// clear asks the kernel to detach. It does so at once if nobody else has the
// device open, else when the last one closes it. EBUSY: it is mounted, and
// nothing was done.
func (l *loopDevice) clear() error {
	f, info, err := loopStatus(l.number, unix.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		return l.clearDead()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if identityOf(info) != l.backing {
		return nil
	}
	return clearFD(f)
}

// clearDead asks the kernel to detach a loop device on a FUSE file whose
// server is gone: its status can't be had, so the name must do.
func (l *loopDevice) clearDead() error {
	f, err := os.OpenFile(l.path(), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if !l.attached() {
		return nil
	}
	return clearFD(f)
}

func clearFD(f *os.File) error {
	err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%s: LOOP_CLR_FD: %w", f.Name(), err)
	}
	return nil
}

// keep takes back a clear that is waiting for somebody to close the device.
func (l *loopDevice) keep() error {
	f, info, err := loopStatus(l.number, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return nil // just in time
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if identityOf(info) != l.backing {
		return nil
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		return fmt.Errorf("%s: LOOP_SET_STATUS64: %w", l.path(), err)
	}
	return fmt.Errorf("%s is still open%s: %w", l.path(), l.users(), volume.ErrPrecondition)
}

// users says where the device is mounted, as far as this process can see.
func (l *loopDevice) users() string {
	mounts, err := readMounts()
	if err != nil {
		return ""
	}
	var at []string
	for _, m := range mounts {
		if m.device == fmt.Sprintf("%d:%d", loopMajor, l.number) || m.source == l.path() {
			at = append(at, m.point)
		}
	}
	if len(at) == 0 {
		return ""
	}
	return " (mounted at " + strings.Join(at, ", ") + ")"
}
