package replica

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// What this process or node is short of says nothing about the disk: it must not
// cost a replica.

// withoutDescriptors runs f while no file can be opened.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

func TestDurableWriteWithoutDescriptors(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(map[bool]string{false: "buffered", true: "direct"}[direct], func(t *testing.T) {
			s := newServer(t, Options{})
			create(t, s, uid(1), mib)
			img := withFaults(s)
			o := opening(uid(1), 1, 1)
			o.Direct = direct
			ses := open(t, s, o)
			synced := 0
			img.set(func(op string) error {
				if op == "sync" {
					synced++
				}
				return nil
			})
			want := pattern(4096, 1)
			var err error
			withoutDescriptors(t, func() {
				err = block.Do(ses, &block.IO{Op: block.OpWrite, FUA: true, Off: 8192, Len: 4096, Data: want})
			})
			if err != nil || synced != 1 {
				t.Fatalf("durable write: %v, %d syncs", err, synced)
			}
			if i, err := s.Get(uid(1)); err != nil || i.Failure != "" {
				t.Errorf("failure %q (%v)", i.Failure, err)
			}
			got := block.Alloc(4096)
			if err := block.ReadAt(ses, got, 8192); err != nil || string(got) != string(want) {
				t.Errorf("what was written is not there: %v", err)
			}
		})
	}
}

func TestNoMemoryFailsNoReplica(t *testing.T) {
	for _, tt := range []struct {
		op string
		io block.IO
	}{
		{"read", block.IO{Op: block.OpRead}},
		{"write", block.IO{Op: block.OpWrite}},
		{"write-durable", block.IO{Op: block.OpWrite, FUA: true}},
		{"punch", block.IO{Op: block.OpTrim}},
	} {
		t.Run(tt.op, func(t *testing.T) {
			s := newServer(t, Options{})
			create(t, s, uid(1), mib)
			img := withFaults(s)
			ses := open(t, s, opening(uid(1), 1, 1))
			img.set(failing(tt.op, unix.ENOMEM))
			io := tt.io
			io.Len = 4096
			if io.Op != block.OpTrim {
				io.Data = pattern(4096, 1)
			}
			err := block.Do(ses, &io)
			wantErr(t, "the I/O", err, volume.ErrUnavailable)
			if errors.Is(err, volume.ErrFailed) {
				t.Errorf("it failed the replica: %v", err)
			}
			img.set(nil)
			if err := block.WriteAt(ses, pattern(4096, 2), 0); err != nil {
				t.Errorf("write after it: %v", err)
			}
		})
	}
	// A flush has to make earlier writes durable: nobody knows what became of them.
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	ses := open(t, s, opening(uid(1), 1, 1))
	img.set(failing("sync", unix.ENOMEM))
	wantErr(t, "flush", block.Flush(ses), volume.ErrFailed)
}

// shortLoop carries nothing out.
type shortLoop struct {
	block.Loop
	errno unix.Errno
}

// Start implements block.Loop.
func (l shortLoop) Start(o *block.LoopOp) { o.Done(o, 0, l.errno) }

// TestLoopShortOfMemory: what the loop could not begin is done without it.
func TestLoopShortOfMemory(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	ses := Async{open(t, s, opening(uid(1), 1, 1))}
	if err := block.WriteAt(ses, pattern(4096, 1), 0); err != nil { // its intent bit
		t.Fatal(err)
	}
	want := pattern(4096, 2)
	write := &block.IO{Op: block.OpWrite, Len: 4096, Data: want, Loop: shortLoop{errno: unix.ENOMEM}}
	if err := block.Do(ses, write); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := block.Alloc(4096)
	if err := block.ReadAt(ses, got, 0); err != nil || string(got) != string(want) {
		t.Errorf("what was written is not there: %v", err)
	}
}

// slowClose is an image that takes its time to close.
type slowClose struct {
	Image
	closing, let chan struct{}
}

// Close implements Image.
func (i slowClose) Close() error {
	close(i.closing)
	<-i.let
	return i.Image.Close()
}

// TestLoopDoesNotCloseFiles: the last I/O of a session that is over may end on a
// loop's thread, which serves others, too. It does not wait there until the files
// are synced and closed.
func TestLoopDoesNotCloseFiles(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	img := slowClose{ses.img, make(chan struct{}), make(chan struct{})}
	if err := block.WriteAt(ses, pattern(4096, 1), 0); err != nil { // its intent bit
		t.Fatal(err)
	}
	held := heldLoop{Loop: blocktest.NewLoop(t), ops: make(chan *block.LoopOp, 1)}
	answer := make(chan error, 1)
	Async{ses}.Submit(&block.IO{
		Op: block.OpWrite, Len: 4096, Data: pattern(4096, 2), Loop: held,
		Done: func(_ *block.IO, err error) { answer <- err },
	})
	o := <-held.ops
	ses.img = img // settle is the only one who still looks at it
	ses.end(volume.ErrClosed)
	returned := make(chan struct{})
	go func() {
		o.Done(o, 4096, nil)
		close(returned)
	}()
	<-img.closing
	select {
	case <-returned:
	case <-time.After(time.Minute):
		t.Error("the thread waits for the image to be closed")
	}
	select {
	case <-ses.gate.empty:
		t.Error("over before the image is closed")
	default:
	}
	close(img.let)
	<-ses.gate.empty
	if err := <-answer; err != nil {
		t.Errorf("write: %v", err)
	}
}

// heldLoop lets a test end operations.
type heldLoop struct {
	block.Loop
	ops chan *block.LoopOp
}

// Start implements block.Loop.
func (l heldLoop) Start(o *block.LoopOp) { l.ops <- o }
