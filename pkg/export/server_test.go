package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var quiet = slog.New(slog.DiscardHandler)

// kernel plays the kernel's part to a server, on a socket that keeps message
// boundaries as /dev/fuse does.
type kernel struct {
	t   *testing.T
	fd  int
	srv *server
}

func newKernel(t *testing.T, dev block.Device, threads int) *kernel {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range pair {
		for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 8<<20) // only large messages need it
		}
	}
	srv, err := newServer(pair[1], dev, quiet)
	if err != nil {
		t.Fatal(err)
	}
	srv.start(threads)
	k := &kernel{t: t, fd: pair[0], srv: srv}
	t.Cleanup(k.hangUp)
	return k
}

// hangUp ends the connection, and waits until the server has let go of
// everything.
func (k *kernel) hangUp() {
	if k.fd < 0 {
		return
	}
	// The server's end is shut down and not closed, which is its own to do.
	if err := errors.Join(unix.Shutdown(k.fd, unix.SHUT_RDWR), unix.Close(k.fd)); err != nil {
		k.t.Error(err)
	}
	k.fd = -1
	select {
	case <-k.srv.freed:
	case <-time.After(time.Minute):
		k.t.Error("the server did not release its descriptor and memory")
	}
}

func (k *kernel) send(in []byte) {
	k.t.Helper()
	if _, err := unix.Write(k.fd, in); err != nil {
		k.t.Fatal(err)
	}
}

// receive returns the unique number, the errno and the body of a reply.
func (k *kernel) receive() (uint64, unix.Errno, []byte) {
	k.t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}, 60_000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}, 60_000)
	}
	if err != nil || n != 1 {
		k.t.Fatalf("no reply: %d, %v", n, err)
	}
	out := make([]byte, maxPayloadBytes+4096)
	n, err = unix.Read(k.fd, out)
	if err != nil || n < outHeaderBytes || int(host.Uint32(out)) != n {
		k.t.Fatalf("reply of %d bytes: % x: %v", n, out[:outHeaderBytes], err)
	}
	return host.Uint64(out[8:]), unix.Errno(-int32(host.Uint32(out[4:]))), out[outHeaderBytes:n]
}

func (k *kernel) call(in []byte) (unix.Errno, []byte) {
	k.t.Helper()
	k.send(in)
	unique, errno, body := k.receive()
	if want := host.Uint64(in[8:]); unique != want {
		k.t.Fatalf("reply to request %#x, want %#x", unique, want)
	}
	return errno, body
}

// engines runs a test with each kind of reader.
func engines(t *testing.T, test func(t *testing.T, threads int)) {
	t.Run("io_uring", func(t *testing.T) {
		if f := ringFinding(); !f.ok {
			t.Skipf("needs io_uring: %s", f.detail)
		}
		test(t, 0)
	})
	t.Run("one thread", func(t *testing.T) { test(t, 1) })
	t.Run("three threads", func(t *testing.T) { test(t, 3) })
}

func TestServerAnswers(t *testing.T) { engines(t, testServerAnswers) }

func testServerAnswers(t *testing.T, threads int) {
	mem := blocktest.NewMemory(4 << 20)
	data := bytes.Repeat([]byte("hold"), 2048)
	k := newKernel(t, mem, threads)
	if errno, body := k.call(encode(opWrite, 1<<63|1, ioArg(4096, 8192), data)); errno != 0 || host.Uint32(body) != 8192 {
		t.Fatalf("write: %v % x", errno, body)
	}
	if errno, body := k.call(encode(opRead, 2, ioArg(4096, 8192))); errno != 0 || !bytes.Equal(body, data) {
		t.Fatalf("read: %v, %d bytes", errno, len(body))
	}
	if errno, body := k.call(encode(opGetattr, 3, make([]byte, 16))); errno != 0 || len(body) != attrOutBytes || host.Uint64(body[24:]) != 4<<20 {
		t.Errorf("getattr: %v % x", errno, body)
	}
	punch := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	zero := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	cases := []struct {
		name  string
		in    []byte
		errno unix.Errno
		op    block.Op // that reaches the device
	}{
		{"fsync", encode(opFsync, 4, make([]byte, 16)), 0, block.OpFlush},
		{"punch", encode(opFallocate, 5, fallocateArg(4096, 4096, punch)), 0, block.OpTrim},
		{"zero", encode(opFallocate, 6, fallocateArg(8192, 4096, zero)), 0, block.OpWriteZeroes},
		{"allocate", encode(opFallocate, 7, fallocateArg(0, 4096, 0)), unix.EOPNOTSUPP, 0},
		{"collapse", encode(opFallocate, 7, fallocateArg(0, 4096, unix.FALLOC_FL_COLLAPSE_RANGE)), unix.EOPNOTSUPP, 0},
		{"read past the end", encode(opRead, 8, ioArg(4<<20, 4096)), unix.EIO, 0},
		{"truncate", encode(opSetattr, 9, func() []byte { a := make([]byte, 88); a[0] = setattrSize; return a }()), unix.EPERM, 0},
		{"touch", encode(opSetattr, 10, make([]byte, 88)), 0, 0},
		{"open", encode(opOpen, 11, make([]byte, 8)), 0, 0},
		{"second open", encode(opOpen, 12, make([]byte, 8)), unix.EBUSY, 0},
		{"statfs", encode(opStatfs, 13), 0, 0},
		{"release", encode(opRelease, 14, make([]byte, 24)), 0, 0},
		{"interrupt", encode(opInterrupt, 15, make([]byte, 8)), unix.ENOSYS, 0},
		{"lseek", encode(46, 16, make([]byte, 24)), unix.ENOSYS, 0},
		{"lookup", encode(1, 17, []byte("x\x00")), unix.ENOSYS, 0},
		{"garbage", encode(opWrite, 18, ioArg(0, 99), []byte("x")), unix.EINVAL, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := mem.Count(c.op)
			if errno, _ := k.call(c.in); errno != c.errno {
				t.Errorf("answered %v, want %v", errno, c.errno)
			}
			if c.op != 0 && mem.Count(c.op) != before+1 {
				t.Errorf("%d of %s reached the device, want 1", mem.Count(c.op)-before, c.op)
			}
		})
	}
	if !bytes.Equal(mem.Bytes()[4096:12288], make([]byte, 8192)) {
		t.Error("punched and zeroed ranges don't read as zeroes")
	}
}

func TestServerErrors(t *testing.T) { engines(t, testServerErrors) }

func testServerErrors(t *testing.T, threads int) {
	cases := map[error]unix.Errno{
		volume.ErrNoSpace:      unix.ENOSPC,
		volume.ErrUnsupported:  unix.EOPNOTSUPP,
		volume.ErrFenced:       unix.EIO,
		volume.ErrUnavailable:  unix.EIO,
		volume.ErrClosed:       unix.EIO,
		errors.New("anything"): unix.EIO,
	}
	mem := blocktest.NewMemory(1 << 20)
	k := newKernel(t, mem, threads)
	for cause, want := range cases {
		mem.Fail(func(*block.IO) error { return fmt.Errorf("injected: %w", cause) })
		if errno, body := k.call(encode(opRead, 1, ioArg(0, 4096))); errno != want || len(body) != 0 {
			t.Errorf("%v: answered %v with %d bytes, want %v", cause, errno, len(body), want)
		}
	}
}

// TestServerOutOfOrder holds back more requests than there are readers, and
// lets them go in another order.
func TestServerOutOfOrder(t *testing.T) { engines(t, testServerOutOfOrder) }

func testServerOutOfOrder(t *testing.T, threads int) {
	const n = 40
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mem := blocktest.NewMemory(n * 4096)
	mem.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite })
	k := newKernel(t, mem, threads)
	for i := range uint64(n) {
		k.send(encode(opWrite, i+1, ioArg(i*4096, 4096), bytes.Repeat([]byte{byte(i + 1)}, 4096)))
	}
	if err := mem.WaitHeld(ctx, n); err != nil {
		t.Fatal(err)
	}
	if errno, _ := k.call(encode(opRead, 99, ioArg(0, 4096))); errno != 0 {
		t.Errorf("a read behind held writes: %v", errno)
	}
	for left := n; left > 0; left-- {
		mem.Release(rand.IntN(left))
	}
	seen := map[uint64]bool{}
	for range n {
		unique, errno, _ := k.receive()
		if errno != 0 || seen[unique] {
			t.Errorf("request %d: %v, seen %t", unique, errno, seen[unique])
		}
		seen[unique] = true
	}
	for i, b := range mem.Bytes() {
		if int(b) != i/4096+1 {
			t.Fatalf("byte %d is %d: buffers were mixed up", i, b)
		}
	}
}

// blockingDevice makes Submit itself wait for flushes and trims.
type blockingDevice struct {
	*blocktest.Memory
	entered, leave chan struct{}
}

func (d *blockingDevice) Submit(io *block.IO) {
	if io.Op == block.OpFlush || io.Op == block.OpTrim {
		d.entered <- struct{}{}
		<-d.leave
	}
	d.Memory.Submit(io)
}

// TestServerSlowOperations has one reader and a device that is synchronous and
// slow with flush and trim: reads must go on.
func TestServerSlowOperations(t *testing.T) { engines(t, testServerSlowOperations) }

func testServerSlowOperations(t *testing.T, threads int) {
	dev := &blockingDevice{blocktest.NewMemory(1 << 20), make(chan struct{}, 2), make(chan struct{})}
	k := newKernel(t, dev, threads)
	k.send(encode(opFsync, 1, make([]byte, 16)))
	k.send(encode(opFallocate, 2, fallocateArg(0, 4096, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)))
	<-dev.entered
	<-dev.entered
	if errno, _ := k.call(encode(opRead, 3, ioArg(0, 4096))); errno != 0 {
		t.Errorf("a read behind a slow flush: %v", errno)
	}
	close(dev.leave)
	for range 2 {
		if unique, errno, _ := k.receive(); errno != 0 || unique > 2 {
			t.Errorf("request %d: %v", unique, errno)
		}
	}
}

// TestServerReleasesLate ends the connection while the device still has
// requests: their buffers must stay until the device is done.
func TestServerReleasesLate(t *testing.T) { engines(t, testServerReleasesLate) }

func testServerReleasesLate(t *testing.T, threads int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mem := blocktest.NewMemory(1 << 20)
	mem.Hold(func(*block.IO) bool { return true })
	k := newKernel(t, mem, threads)
	for i := range uint64(5) {
		k.send(encode(opWrite, i, ioArg(0, 4096), make([]byte, 4096)))
	}
	if err := mem.WaitHeld(ctx, 5); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(k.fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	<-k.srv.gone
	mem.Release(0)
	select {
	case <-k.srv.freed:
		t.Fatal("released with four requests at the device")
	default:
	}
	mem.Release(-1)
	k.hangUp()
}

// TestServerGarbage sends random bytes; the server must answer or drop each
// and stay well.
func TestServerGarbage(t *testing.T) { engines(t, testServerGarbage) }

func testServerGarbage(t *testing.T, threads int) {
	rng := rand.New(rand.NewPCG(1, 2))
	mem := blocktest.NewMemory(1 << 20)
	k := newKernel(t, mem, threads)
	for range 500 {
		in := make([]byte, 1+rng.IntN(300))
		for i := range in {
			in[i] = byte(rng.Uint32())
		}
		if rng.IntN(2) == 0 && len(in) >= inHeaderBytes { // a plausible header
			host.PutUint32(in, uint32(len(in)))
			host.PutUint32(in[4:], uint32(rng.IntN(60)))
		}
		if op := host.Uint32(append(in, make([]byte, 8)...)[4:]); op == opForget || op == opBatchForget {
			continue
		}
		k.send(in)
		k.receive()
	}
	if errno, _ := k.call(encode(opRead, 1, ioArg(0, 4096))); errno != 0 {
		t.Errorf("after garbage: %v", errno)
	}
}

func TestBufferPool(t *testing.T) {
	p, err := newBufferPool(&server{})
	if err != nil {
		t.Fatal(err)
	}
	var taken []*slot
	for p.bytes.Load() <= maxInflightBytes {
		s := p.get()
		s.mem[p.page] = 1
		p.charge(s, maxPayloadBytes)
		taken = append(taken, s)
	}
	waiting := make(chan *slot)
	go func() { waiting <- p.get() }()
	select {
	case <-waiting:
		t.Error("a slot beyond the limit of bytes")
	default:
	}
	for _, s := range taken {
		p.put(s, maxPayloadBytes)
	}
	p.put(<-waiting, 0)
	if p.resident == 0 || p.resident > maxResidentBytes || p.out != 0 || p.bytes.Load() != 0 {
		t.Errorf("resident %d, out %d, bytes %d", p.resident, p.out, p.bytes.Load())
	}
	p.idle() // as the timer would; the first look sees a change or not
	p.idle()
	if p.resident != 0 {
		t.Errorf("%d bytes resident when idle", p.resident)
	}
	for _, s := range taken {
		if s.mem[p.page] != 0 {
			t.Error("memory was not given back")
			break
		}
	}
	s := p.get()
	if p.close() {
		t.Error("close says that no slot is out")
	}
	if p.get() != nil {
		t.Error("a slot after close")
	}
	if !p.put(s, 0) {
		t.Error("the last slot is not reported")
	}
	if err := p.release(); err != nil {
		t.Error(err)
	}
}
