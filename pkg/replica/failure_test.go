package replica

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func failing(op string, err error) func(string) error {
	return func(o string) error {
		if o == op {
			return err
		}
		return nil
	}
}

// TestDiskErrorsFailTheReplica: durable before the I/O is answered, for all that
// comes after, and for good.
func TestDiskErrorsFailTheReplica(t *testing.T) {
	tests := []struct {
		name, op string
		io       block.IO
	}{
		{"flush", "sync", block.IO{Op: block.OpFlush}},
		{"write", "write", block.IO{Op: block.OpWrite}},
		{"durable write", "write-durable", block.IO{Op: block.OpWrite, FUA: true}},
		{"trim", "punch", block.IO{Op: block.OpTrim, Len: 4096}},
		{"durable trim", "sync", block.IO{Op: block.OpTrim, Len: 4096, FUA: true}},
	}
	p := pooltest.New(t)
	for n, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, Options{Pools: Pools(p)})
			u := uid(n + 1)
			create(t, s, u, mib)
			img := withFaults(s)
			var told atomic.Pointer[error]
			o := opening(u, 1, 1)
			o.OnEnd = func(err error) { told.Store(&err) }
			ses := open(t, s, o)
			img.set(failing(tt.op, unix.EIO))
			io := tt.io
			if io.Op == block.OpWrite {
				io.Data, io.Len = pattern(4096, 1), 4096
			}
			wantErr(t, "the I/O", block.Do(ses, &io), volume.ErrFailed)

			// Recorded by now, as another process would see it.
			onDisk := s.newReplica(s.opts.Pools[0], u)
			onDisk.load()
			if onDisk.broken != nil || !strings.Contains(onDisk.meta.Failure, "input/output error") {
				t.Errorf("on disk: failure %q (%v)", onDisk.meta.Failure, onDisk.broken)
			}
			if err := told.Load(); err == nil || !errors.Is(*err, volume.ErrFailed) {
				t.Errorf("OnEnd got %v", err)
			}
			img.set(nil) // the next fsync would succeed, and mean nothing
			wantErr(t, "flush after it", block.Flush(ses), volume.ErrFailed)
			wantErr(t, "read after it", block.ReadAt(ses, make([]byte, 4096), 0), volume.ErrFailed)
			wantErr(t, "write after it", block.WriteAt(ses, pattern(4096, 2), 0), volume.ErrFailed)
			for range 2 {
				_, err := s.Open(deadline(t), opening(u, 2, 1))
				wantErr(t, "open", err, volume.ErrFailed)
				_, _, err = s.ClaimLoop(deadline(t), opening(u, 2, 1))
				wantErr(t, "claim", err, volume.ErrFailed)
				if i, err := s.Get(u); err != nil || i.Failure == "" {
					t.Errorf("info %+v (%v)", i, err)
				}
				s = restart(t, s)
			}
		})
	}
}

// TestReadErrorIsOnlyAnAnswer: the other replicas have the content; the mirror
// decides.
func TestReadErrorIsOnlyAnAnswer(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	ses := open(t, s, opening(uid(1), 1, 1))
	img.set(failing("read", unix.EIO))
	wantErr(t, "read", block.ReadAt(ses, make([]byte, 4096), 0), unix.EIO)
	img.set(nil)
	if err := block.ReadAt(ses, make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// TestFlushBesideAFailingOne: the kernel tells only one of two concurrent fsyncs
// of a lost page. Neither flush may succeed.
func TestFlushBesideAFailingOne(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	ses := open(t, s, opening(uid(1), 1, 1))
	if err := block.WriteAt(ses, pattern(4096, 1), 0); err != nil {
		t.Fatal(err)
	}
	entered, let := make(chan struct{}), make(chan struct{})
	var calls atomic.Int64
	img.set(func(op string) error {
		if op == "sync" && calls.Add(1) == 1 {
			close(entered)
			<-let
			return unix.EIO // told to this one; the next call would return nil
		}
		return nil
	})
	results := make(chan error, 9)
	flush := func() { results <- block.Flush(ses) }
	go flush()
	<-entered
	for range 8 {
		go flush()
	}
	close(let)
	for range 9 {
		wantErr(t, "flush", <-results, volume.ErrFailed)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d fsyncs: one was retried", n)
	}
}

// TestFencedSessionFails: the last I/O of a fenced session meets a disk error;
// the successor must hear of it.
func TestFencedSessionFails(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	old := open(t, s, opening(uid(1), 1, 1))
	entered, let := make(chan struct{}), make(chan struct{})
	img.set(func(op string) error {
		if op != "sync" {
			return nil
		}
		close(entered)
		<-let
		return unix.EIO
	})
	go func() { _ = block.Flush(old) }()
	<-entered
	opened := make(chan error, 1)
	fenced := make(chan struct{})
	old.onEnd(func(error) { close(fenced) })
	go func() {
		_, err := s.Open(deadline(t), opening(uid(1), 2, 1))
		opened <- err
	}()
	<-fenced
	close(let)
	wantErr(t, "open", <-opened, volume.ErrFailed)
}

func TestWriteBackErrorFails(t *testing.T) {
	s := newServer(t, Options{WritebackBytes: 4096, MaxDirtyBytes: 8192})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	failed := make(chan error, 1)
	o := opening(uid(1), 1, 1)
	o.OnEnd = func(err error) { failed <- err }
	ses := open(t, s, o)
	img.set(failing("write-back", unix.EIO))
	for range 16 { // none may wait for ever for room
		if err := block.WriteAt(ses, pattern(4096, 1), 0); err != nil {
			break
		}
	}
	wantErr(t, "OnEnd", <-failed, volume.ErrFailed)
}

// TestWritersWaitForWriteBack: no more than MaxDirtyBytes (and what is under way)
// is left for a flush.
func TestWritersWaitForWriteBack(t *testing.T) {
	s := newServer(t, Options{WritebackBytes: 4096, MaxDirtyBytes: 64 << 10})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	ses := open(t, s, opening(uid(1), 1, 1))
	let := make(chan struct{})
	var writes atomic.Int64
	img.set(func(op string) error {
		switch op {
		case "write":
			writes.Add(1)
		case "write-back":
			<-let
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		for range 100 {
			if err := block.WriteAt(ses, pattern(4096, 1), 0); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for writes.Load() < 16 { // gets that far without write-back
		select {
		case err := <-done:
			t.Fatalf("ended early: %v", err)
		default:
		}
	}
	select {
	case let <- struct{}{}: // a round is waiting
	case err := <-done:
		t.Fatalf("all writes passed without write-back: %v", err)
	}
	close(let)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
