package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	fuseType = "fuse.holdfast"
	// fuseFile is the mount point in an export's directory.
	fuseFile = "volume"
	// DefaultThreads is the number of readers per export where there is no
	// io_uring; see TuneRuntime.
	DefaultThreads = 4
)

// FUSEOptions describe a FUSE export.
type FUSEOptions struct {
	// Dir is made if missing, and must belong to this export alone.
	Dir    string
	Volume volume.ID
	// Device stays the caller's. Its size must be a multiple of 4096.
	Device  block.Device
	Threads int // readers that block in read(2); 0 means one with io_uring, or DefaultThreads without
	Logger  *slog.Logger
}

type fuseExport struct {
	opt  FUSEOptions
	file string // the mount point
	srv  *server
	loop *loopDevice

	busy   chan struct{} // holds a token while a Resize or Close runs
	closed bool          // Guarded by busy.
}

// OpenFUSE exports a device through FUSE and a loop device. On an error nothing
// is left behind. The export lives until Close; ctx bounds the opening alone.
func OpenFUSE(ctx context.Context, opt FUSEOptions) (Export, error) {
	if size := opt.Device.Size(); size <= 0 || size%sectorBytes != 0 {
		return nil, fmt.Errorf("export %s: a device of %d bytes, not a multiple of %d: %w", opt.Volume, size, sectorBytes, volume.ErrInvalid)
	}
	opt.Logger = opt.Logger.With("volume", opt.Volume)
	e := &fuseExport{opt: opt, file: filepath.Join(opt.Dir, fuseFile), busy: make(chan struct{}, 1)}
	if err := e.open(ctx); err != nil {
		return nil, fmt.Errorf("export %s: %w", opt.Volume, err)
	}
	opt.Logger.Info("exported", "device", e.Device(), "size", opt.Device.Size(), "directIo", e.loop.direct())
	return e, nil
}

func (e *fuseExport) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := Sweep(ctx, e.opt.Dir, e.opt.Logger); err != nil {
		return err
	}
	if err := os.MkdirAll(e.opt.Dir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(e.file, nil, 0o600); err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	err := e.mount(ctx)
	if err == nil {
		err = e.attach(ctx)
	}
	if err == nil {
		return nil
	}
	// Also when ctx has ended nothing may be left.
	tail, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	return errors.Join(err, e.unmount(tail))
}

// mount makes the FUSE file and starts serving it.
func (e *fuseExport) mount(ctx context.Context) error {
	fd, err := mountFUSE(ctx, e.file)
	if err != nil {
		return err
	}
	srv, err := newServer(fd, e.opt.Device, e.opt.Logger)
	if err != nil {
		return errors.Join(err, unmountFUSE(e.file), unix.Close(fd))
	}
	e.srv = srv
	srv.abort = func() { abortFUSE(e.file) }
	srv.start(e.opt.Threads)
	return nil
}

// attach puts a loop device on the mounted file.
func (e *fuseExport) attach(ctx context.Context) error {
	type result struct {
		loop *loopDevice
		err  error
	}
	done := make(chan result, 1)
	go func() {
		l, err := e.attachBlocking(ctx)
		done <- result{l, err}
	}()
	select {
	case r := <-done:
		e.loop = r.loop
		return r.err
	case <-ctx.Done():
	}
	// The device does not answer. Nothing waits for it any longer once the
	// connection is aborted.
	abortFUSE(e.file)
	err := fmt.Errorf("attach a loop device: %w", ctx.Err())
	if r := <-done; r.err == nil {
		tail, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
		defer cancel()
		err = errors.Join(err, r.loop.detach(tail))
	}
	return err
}

func (e *fuseExport) attachBlocking(ctx context.Context) (*loopDevice, error) {
	fd, err := unix.Open(e.file, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: e.file, Err: err}
	}
	backing := os.NewFile(uintptr(fd), e.file)
	defer backing.Close()
	// Before 6.15 the kernel gives the loop device the size that the inode has in
	// memory: that is 0 after the mount, until somebody asks for it.
	want, err := e.renewSize()
	if err != nil {
		return nil, err
	}
	l, err := attachLoop(ctx, backing, string(e.opt.Volume))
	if err != nil {
		return nil, err
	}
	got, err := l.size()
	if err == nil && got != want {
		err = fmt.Errorf("%s has %d bytes, not %d: %w", l.path(), got, want, volume.ErrUnsupported)
	}
	if err != nil {
		tail, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
		defer cancel()
		return nil, errors.Join(err, l.detach(tail))
	}
	return l, nil
}

// renewSize makes the kernel ask for the size of the mounted file again, and
// returns it.
func (e *fuseExport) renewSize() (int64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, e.file, unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: e.file, Err: err}
	}
	return int64(st.Size), nil
}

// mountFUSE mounts a file system whose root is a regular file over the file at
// target, and answers the kernel's INIT. The descriptor blocks.
func mountFUSE(ctx context.Context, target string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	// Without allow_other: nobody but root gets in, not even to see the size.
	data := fmt.Sprintf("fd=%d,rootmode=100000,user_id=0,group_id=0", fd)
	if err := unix.Mount("holdfast", target, fuseType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, data); err != nil {
		return -1, errors.Join(fmt.Errorf("mount FUSE on %s: %w", target, err), unix.Close(fd))
	}
	if _, err := answerInit(ctx, fd); err != nil {
		// Closing the only descriptor first ends the connection, and with it
		// whatever an unmount could wait for.
		return -1, errors.Join(fmt.Errorf("FUSE on %s: %w", target, err), unix.Close(fd), unmountFUSE(target))
	}
	return fd, nil
}

// answerInit answers the first request of a connection.
func answerInit(ctx context.Context, fd int) (hello, error) {
	wait := 10 * time.Second
	if at, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(at))
	}
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait/time.Millisecond))
	if err == nil && ready == 0 {
		err = unix.ETIMEDOUT
	}
	if err != nil {
		return hello{}, fmt.Errorf("wait for INIT: %w", err)
	}
	in := make([]byte, requestHeaderBytes+maxPayloadBytes)
	n, err := unix.Read(fd, in)
	if err != nil {
		return hello{}, fmt.Errorf("read INIT: %w", err)
	}
	h, err := decodeInit(in[:n])
	if err != nil {
		return hello{}, err
	}
	if _, err := unix.Write(fd, initReply(h, os.Getpagesize())); err != nil {
		return hello{}, fmt.Errorf("answer INIT: %w", err)
	}
	return h, nil
}

// abortFUSE aborts the connection behind the mount at target, so that nothing
// waits for it any longer, and removes the mount if nothing uses it. It needs no
// fusectl file system: a forced unmount aborts, even one that is refused.
func abortFUSE(target string) (unmounted bool) {
	err := unix.Unmount(target, unix.MNT_FORCE)
	return err == nil || errors.Is(err, unix.EINVAL) // EINVAL: not mounted
}

// unmountFUSE aborts the connection and removes the mount.
func unmountFUSE(target string) error {
	if abortFUSE(target) {
		return nil
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// unmount ends the connection and removes the mount point. It waits until the
// readers have ended.
func (e *fuseExport) unmount(ctx context.Context) error {
	if err := detached(ctx, "unmount "+e.file, func() error { return unmountFUSE(e.file) }); err != nil {
		return err
	}
	if e.srv != nil {
		select {
		case <-e.srv.gone:
		case <-ctx.Done():
			return fmt.Errorf("the FUSE connection at %s does not end: %w", e.file, volume.ErrUnavailable)
		}
	}
	if err := os.Remove(e.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The directory may be the caller's for other things too.
	_ = os.Remove(e.opt.Dir)
	return nil
}

// Kind implements Export.
func (e *fuseExport) Kind() Kind { return KindFUSE }

// Device implements Export.
func (e *fuseExport) Device() string { return e.loop.path() }

// Alive implements Export.
func (e *fuseExport) Alive() bool { return !e.srv.dead.Load() && e.loop.attached() }

func (e *fuseExport) lock(ctx context.Context) error {
	select {
	case e.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("export of %s: a Resize or Close hangs: %w", e.opt.Volume, volume.ErrPending)
	}
}

func (e *fuseExport) unlock() { <-e.busy }

// Resize implements Export.
func (e *fuseExport) Resize(ctx context.Context, size int64) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	if e.closed {
		return fmt.Errorf("resize %s: %w", e.opt.Volume, volume.ErrClosed)
	}
	if have := e.opt.Device.Size(); have != size || size%sectorBytes != 0 {
		return fmt.Errorf("resize %s to %d bytes, but the device has %d: %w", e.opt.Volume, size, have, volume.ErrInvalid)
	}
	return detached(ctx, "resize "+e.Device(), func() error {
		if _, err := e.renewSize(); err != nil {
			return err
		}
		return e.loop.resize(size)
	})
}

// Close implements Export.
func (e *fuseExport) Close(ctx context.Context) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	if e.closed {
		return nil
	}
	if err := e.loop.detach(ctx); err != nil {
		return fmt.Errorf("close the export of %s: %w", e.opt.Volume, err)
	}
	// The device is gone; what follows is quick, and must not be left half
	// done because ctx ended just now.
	tail, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	if err := e.unmount(tail); err != nil {
		return fmt.Errorf("close the export of %s: %w", e.opt.Volume, err)
	}
	e.closed = true
	e.opt.Logger.Info("export closed", "device", e.Device())
	return nil
}
