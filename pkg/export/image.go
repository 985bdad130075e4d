package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// LoopOptions describe an export by a loop device alone.
type LoopOptions struct {
	Path   string // the image; its size must be a multiple of 4096
	Logger *slog.Logger
}

type loopExport struct {
	opt  LoopOptions
	loop *loopDevice
}

// OpenLoop puts a loop device on an image, or adopts the one that is there
// already, which goes on serving meanwhile.
func OpenLoop(ctx context.Context, opt LoopOptions) (Export, error) {
	fd, err := unix.Open(opt.Path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("export %s: its file system has no direct I/O: %w", opt.Path, volume.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("export: %w", &os.PathError{Op: "open", Path: opt.Path, Err: err})
	}
	backing := os.NewFile(uintptr(fd), opt.Path)
	defer backing.Close()
	st, err := backing.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size()%sectorBytes != 0 {
		return nil, fmt.Errorf("export %s: %s of %d bytes is not an image: %w", opt.Path, st.Mode(), st.Size(), volume.ErrInvalid)
	}
	e := &loopExport{opt: opt}
	how := "made"
	e.loop, err = findLoop(opt.Path)
	switch {
	case err == nil:
		how = "adopted"
		err = e.Resize(ctx, st.Size())
	case errors.Is(err, volume.ErrNotFound):
		e.loop, err = attachLoop(ctx, backing, opt.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", opt.Path, err)
	}
	opt.Logger.Info("exported", "how", how, "image", opt.Path, "device", e.Device(), "size", st.Size(), "directIo", e.loop.direct())
	return e, nil
}

// LoopAttached says which loop device stands on the file at path, if any.
func LoopAttached(path string) (device string, ok bool, err error) {
	l, err := findLoop(path)
	if errors.Is(err, volume.ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return l.path(), true, nil
}

// Kind implements Export.
func (e *loopExport) Kind() Kind { return KindLoop }

// Device implements Export.
func (e *loopExport) Device() string { return e.loop.path() }

// Alive implements Export.
func (e *loopExport) Alive() bool { return e.loop.attached() }

// Resize implements Export.
func (e *loopExport) Resize(ctx context.Context, size int64) error {
	return detached(ctx, "resize "+e.Device(), func() error { return e.loop.resize(size) })
}

// Close implements Export.
func (e *loopExport) Close(ctx context.Context) error {
	if err := e.loop.detach(ctx); err != nil {
		return fmt.Errorf("close the export of %s: %w", e.opt.Path, err)
	}
	e.opt.Logger.Info("export closed", "image", e.opt.Path, "device", e.Device())
	return nil
}
