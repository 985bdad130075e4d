package export

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// needsRing skips a test where there is no io_uring.
func needsRing(t *testing.T) {
	t.Helper()
	if f := ringFinding(); !f.ok {
		t.Skipf("needs io_uring: %s", f.detail)
	}
}

// pairServer makes a server that nothing reads for, and the kernel's end.
func pairServer(t *testing.T) (*server, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := newServer(pair[1], blocktest.NewMemory(1<<20), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if srv.pool.close() {
			srv.free()
		}
		if err := unix.Close(pair[0]); err != nil {
			t.Error(err)
		}
		select {
		case <-srv.freed:
		case <-time.After(time.Minute):
			t.Error("a slot was not returned")
		}
	})
	return srv, pair[0]
}

// answered is a slot with a reply that the reader is to send.
func answered(t *testing.T, srv *server, unique uint64) *slot {
	t.Helper()
	sl := srv.pool.get()
	sl.state.Store(slotReading)
	sl.unique = unique
	srv.reply(sl, 0, 8)
	if !sl.replied() {
		t.Fatal("the reply is not the reader's to send")
	}
	return sl
}

func ringReaderOf(t *testing.T, srv *server) *ringReader {
	t.Helper()
	r, err := newRingReader(srv)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.ring.close(), unix.Close(r.loop.wakeFD)); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRingWithoutDescriptors: a ring that can't be made leaves a descriptor that
// blocks. The threads that read it instead would spin.
func TestRingWithoutDescriptors(t *testing.T) {
	needsRing(t)
	srv, _ := pairServer(t)
	next, err := unix.Dup(srv.fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(next); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	one := unix.Rlimit{Cur: uint64(next) + 1, Max: limit.Max} // the ring's own, and no other
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &one); err != nil {
		t.Fatal(err)
	}
	r, err := newRingReader(srv)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Fatalf("a ring reader without descriptors: %+v", r)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("no ring reader: %v", err)
	}
	flags, err := unix.FcntlInt(uintptr(srv.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v: the descriptor does not block", flags, err)
	}
}

// TestRingReplyNotWritten: a reply that the kernel did not take is sent again, for
// nobody else answers the request.
func TestRingReplyNotWritten(t *testing.T) {
	needsRing(t)
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EINTR, unix.ENOMEM, unix.ECANCELED} {
		t.Run(errno.Error(), func(t *testing.T) {
			srv, fd := pairServer(t)
			k := &kernel{t: t, fd: fd, srv: srv}
			r := ringReaderOf(t, srv)
			sl := answered(t, srv, 7)
			r.writing++
			r.sent(uint64(sl.number), -int32(errno))
			if unique, got, body := k.receive(); unique != 7 || got != 0 || len(body) != 8 {
				t.Errorf("reply to %d: %v with %d bytes", unique, got, len(body))
			}
		})
	}
}

// TestReplyRefused: a request whose reply the kernel refuses gets an error, and if
// it can't be answered at all the connection ends.
func TestReplyRefused(t *testing.T) {
	srv, fd := pairServer(t)
	sl := answered(t, srv, 7)
	sl.out = append(sl.out, make([]byte, 8<<20)...) // no message is as long
	srv.send(sl)
	k := &kernel{t: t, fd: fd, srv: srv}
	if unique, errno, body := k.receive(); unique != 7 || errno != unix.EIO || len(body) != 0 {
		t.Errorf("reply to %d: %v with %d bytes", unique, errno, len(body))
	}
	aborted := false
	srv.abort = func() { aborted = true }
	if err := unix.Shutdown(srv.fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	srv.send(answered(t, srv, 8))
	if !aborted {
		t.Error("the connection goes on with a request that hangs")
	}
}

// TestReplyAfterTheRing: what the device answers on the loop's thread when that
// has done its last round is answered all the same.
func TestReplyAfterTheRing(t *testing.T) {
	needsRing(t)
	srv, fd := pairServer(t)
	k := &kernel{t: t, fd: fd, srv: srv}
	r := ringReaderOf(t, srv)
	r.over = true
	r.reply(answered(t, srv, 9))
	if unique, errno, _ := k.receive(); unique != 9 || errno != 0 {
		t.Errorf("reply to %d: %v", unique, errno)
	}
}

// TestRingFails: of what a failed ring has, only what the kernel never saw is given
// up at once. A write that the kernel may still carry out is not answered before.
func TestRingFails(t *testing.T) {
	needsRing(t)
	var full [2]int
	if err := unix.Pipe2(full[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range []int{full[0], full[1], pair[0], pair[1]} {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	})
	for {
		if _, err := unix.Write(full[1], make([]byte, 4096)); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(full[1], false); err != nil { // else it would not wait
		t.Fatal(err)
	}
	type answer struct {
		name string
		n    int
		err  error
	}
	answers := make(chan answer, 4)
	op := func(name string, kind block.LoopKind, fd int) *block.LoopOp {
		return &block.LoopOp{Kind: kind, FD: fd, Data: make([]byte, 4096), Done: func(_ *block.LoopOp, n int, err error) {
			answers <- answer{name, n, err}
		}}
	}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		r, err := newRing(8)
		if err != nil {
			ended <- err
			return
		}
		l, err := newRingLoop(r, func(error) {})
		if err != nil {
			ended <- errors.Join(err, r.close())
			return
		}
		l.Start(op("receive", block.LoopReceive, pair[0]))
		l.Start(op("write", block.LoopWrite, full[1]))
		if err := r.enter(0); err != nil {
			ended <- err
			return
		}
		l.Start(op("unseen", block.LoopWrite, full[1]))
		l.abandon()
		ended <- errors.Join(r.close(), unix.Close(l.wakeFD))
	}()
	for range 2 {
		switch a := <-answers; {
		case a.name == "unseen" && errors.Is(a.err, context.Canceled):
		case a.name == "receive" && errors.Is(a.err, block.ErrLoopBroken):
			if err := unix.Shutdown(pair[0], unix.SHUT_RDWR); err != nil { // as its owner does then
				t.Error(err)
			}
		default:
			t.Errorf("%s answered %d, %v", a.name, a.n, a.err)
		}
	}
	select {
	case a := <-answers:
		t.Errorf("%s answered %d, %v before the kernel did it", a.name, a.n, a.err)
	case err := <-ended:
		t.Errorf("ended with a write in the kernel: %v", err)
	default:
	}
	if _, err := unix.Read(full[0], make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	if a := <-answers; a.name != "write" || a.n != 4096 || a.err != nil {
		t.Errorf("%s answered %d, %v", a.name, a.n, a.err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
