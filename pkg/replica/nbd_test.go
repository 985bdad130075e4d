package replica

import (
	"context"
	"net"
	"slices"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// serveNBD serves s on loopback until the test ends.
func serveNBD(t *testing.T, s *Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	serveBackend(t, s.NBD(), l)
	return l.Addr().String()
}

// serveBackend serves b on l until the test ends.
func serveBackend(t *testing.T, b nbd.Backend, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- nbd.NewServer(nbd.ServerOptions{Backend: b, Logger: pooltest.Logger(t)}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func dial(t *testing.T, addr, name string) (*nbd.Client, error) {
	t.Helper()
	c, err := nbd.Dial(deadline(t), nbd.DialOptions{Addr: addr, Name: name, Logger: pooltest.Logger(t)})
	if err == nil {
		t.Cleanup(func() { _ = c.Close() }) // it may have been broken by the test
	}
	return c, err
}

func TestNBDServesExactlyTheOpenSession(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	addr := serveNBD(t, s)
	name := Name{Volume: vol, UID: uid(1), Epoch: 1, Session: 1}
	_, err := dial(t, addr, name.String())
	wantErr(t, "not open", err, volume.ErrFenced)
	_, err = dial(t, addr, "../../etc/passwd")
	wantErr(t, "no name", err, volume.ErrInvalid)
	_, err = dial(t, addr, Name{Volume: vol, UID: uid(9), Epoch: 1, Session: 1}.String())
	wantErr(t, "missing", err, volume.ErrNotFound)

	ses := open(t, s, opening(uid(1), 1, 1))
	for what, n := range map[string]Name{
		"another session": {Volume: vol, UID: uid(1), Epoch: 1, Session: 2},
		"another epoch":   {Volume: vol, UID: uid(1), Epoch: 2, Session: 1},
		"another volume":  {Volume: other, UID: uid(1), Epoch: 1, Session: 1},
	} {
		_, err = dial(t, addr, n.String())
		wantErr(t, what, err, volume.ErrFenced)
	}
	c, err := dial(t, addr, name.String())
	must(t, err)
	must(t, block.WriteAt(c, pattern(4096, 1), 4096))
	must(t, block.Flush(c))
	_, err = dial(t, addr, name.String())
	wantErr(t, "a second connection", err, volume.ErrFenced)
	must(t, ses.Grow(deadline(t), 2*mib))
	c.GrewTo(2 * mib)
	must(t, block.WriteAt(c, pattern(4096, 2), 2*mib-4096))

	// The connection goes; the session stays, but takes no other one.
	must(t, c.Close())
	got := make([]byte, 4096)
	must(t, block.ReadAt(ses, got, 4096))
	if !slices.Equal(got, pattern(4096, 1)) {
		t.Error("the write did not arrive")
	}
	_, err = dial(t, addr, name.String())
	wantErr(t, "a reconnection", err, volume.ErrFenced)

	// A successor: the old connection is refused.
	name.Session = 2
	open(t, s, opening(uid(1), 1, 2))
	c, err = dial(t, addr, name.String())
	must(t, err)
	open(t, s, opening(uid(1), 2, 1))
	wantErr(t, "write of a fenced connection", block.WriteAt(c, pattern(4096, 3), 0), volume.ErrFenced)
}

func TestNBDView(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	must(t, block.WriteAt(ses, pattern(4096, 1), 4096))
	if names := s.NBD().List(); !slices.Equal(names, []string{string(uid(1))}) {
		t.Errorf("list %v", names)
	}
	c, err := dial(t, serveNBD(t, s), string(uid(1)))
	must(t, err)
	got := make([]byte, 4096)
	must(t, block.ReadAt(c, got, 4096))
	if !slices.Equal(got, pattern(4096, 1)) {
		t.Error("the view does not show what the session wrote")
	}
	if err := block.WriteAt(c, pattern(4096, 2), 0); err == nil {
		t.Error("wrote through a view")
	}
	must(t, block.WriteAt(ses, pattern(4096, 2), 0)) // not fenced by the view

	v, err := s.NBD().Open(deadline(t), string(uid(1)))
	must(t, err)
	if !v.ReadOnly() || v.Size() != mib {
		t.Errorf("read-only %v, size %d", v.ReadOnly(), v.Size())
	}
	wantErr(t, "trim of a view", block.Do(v, &block.IO{Op: block.OpTrim, Len: 4096}), volume.ErrUnsupported)
	if ext, err := v.BlockStatus(0, mib); err != nil || len(ext) == 0 {
		t.Errorf("block status %v (%v)", ext, err)
	}
	must(t, v.Close())
	wantErr(t, "read after Close", block.ReadAt(v, got, 0), volume.ErrClosed)
}

func TestNBDConformance(t *testing.T) {
	s := newServer(t, Options{})
	addr := serveNBD(t, s)
	n := 0
	blocktest.Run(t, func(t *testing.T) block.Device {
		n++
		u := uid(n)
		create(t, s, u, 16*mib)
		t.Cleanup(func() { must(t, s.Delete(deadline(t), vol, u)) })
		c, err := dial(t, addr, open(t, s, opening(u, 1, 1)).Name().String())
		must(t, err)
		return c
	}, blocktest.Options{})
}
