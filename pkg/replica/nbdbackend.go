package replica

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// NBD offers the open sessions by their Name, each to one connection ever: a
// mirror whose connection broke has recorded its leg Outdated, so the same
// session must not come back. A name that is a UID alone gives a read-only view
// of the image as it is, of damaged and failed replicas too.
func (s *Server) NBD() nbd.Backend { return backend{s} }

type backend struct{ s *Server }

// List implements nbd.Backend: the read-only views.
func (b backend) List() []string {
	var names []string
	for _, r := range b.s.all() {
		names = append(names, string(r.uid))
	}
	return names
}

// Open implements nbd.Backend.
func (b backend) Open(_ context.Context, export string) (nbd.Export, error) {
	name, err := ParseName(export)
	if err != nil {
		return nil, err
	}
	r, err := b.s.lookup(name.UID)
	if err != nil {
		return nil, err
	}
	if name.Epoch == 0 {
		return openView(r)
	}
	r.mu.Lock()
	live, seen := r.live, r.meta
	r.mu.Unlock()
	if live == nil || live.name != name || live.gate.isShut() {
		return nil, fmt.Errorf("replica %s: epoch %d session %d is not open, the last one seen is %d/%d: %w",
			name.UID, name.Epoch, name.Session, seen.Epoch, seen.Session, volume.ErrFenced)
	}
	if live.connected.Swap(true) {
		return nil, fmt.Errorf("replica %s: epoch %d session %d has had its connection: %w", name.UID, name.Epoch, name.Session, volume.ErrFenced)
	}
	return sessionExport{Async{live}}, nil
}

// sessionExport is a connection's use of a session.
type sessionExport struct{ Async }

// Prompt implements nbd.Prompt. Direct I/O has the connection's workers instead.
func (e sessionExport) Prompt() bool { return !e.direct }

// Submit implements block.Device.
func (e sessionExport) Submit(io *block.IO) {
	if e.direct {
		e.Session.Submit(io)
		return
	}
	e.Async.Submit(io)
}

// ReadOnly implements nbd.Export.
func (sessionExport) ReadOnly() bool { return false }

// Close ends the connection's use, not the session: only a newer opening, or its
// owner, ends that. The connection has answered all its requests by now.
func (sessionExport) Close() error { return nil }

// view is a read-only look at an image. It takes no lock and fences nobody.
type view struct {
	size int64
	img  Image
	gate gate
}

func openView(r *replica) (nbd.Export, error) {
	st, err := os.Lstat(r.imagePath())
	if err != nil {
		return nil, fmt.Errorf("replica %s has no image to look at (%w): %w", r.uid, err, volume.ErrCorrupt)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("replica %s: %s is no regular file: %w", r.uid, imageFile, volume.ErrCorrupt)
	}
	img, err := openOSImage(r.imagePath(), ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", r.uid, err)
	}
	v := &view{size: st.Size(), img: img}
	v.gate.init(func() {
		if err := img.Close(); err != nil {
			r.log.Warn("close the image", "error", err)
		}
	})
	return v, nil
}

// Size implements block.Device: the size when it was opened.
func (v *view) Size() int64 { return v.size }

// ReadOnly implements nbd.Export.
func (*view) ReadOnly() bool { return true }

// Submit implements block.Device.
func (v *view) Submit(io *block.IO) {
	if !v.gate.enter() {
		io.Done(io, volume.ErrClosed)
		return
	}
	defer v.gate.leave()
	err := block.CheckRange(io, v.size)
	switch {
	case err != nil || io.Op == block.OpFlush:
	case io.Op == block.OpRead:
		err = v.img.ReadAt(io.Data, io.Off)
	default:
		err = fmt.Errorf("%s on a read-only view: %w (%w)", io.Op, volume.ErrUnsupported, unix.EROFS)
	}
	io.Done(io, err)
}

// BlockStatus implements nbd.Export.
func (v *view) BlockStatus(off, n int64) ([]block.Extent, error) {
	if !v.gate.enter() {
		return nil, volume.ErrClosed
	}
	defer v.gate.leave()
	return v.img.Extents(off, n)
}

// Close implements block.Device.
func (v *view) Close() error {
	v.gate.shut()
	<-v.gate.empty
	return nil
}
