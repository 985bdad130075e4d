package replica

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestOpenFences(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	steps := []struct {
		name    string
		epoch   volume.Epoch
		session volume.Session
		holder  volume.NodeID
		nonce   string
		want    error
	}{
		{"no epoch", 0, 1, "a", "x", volume.ErrInvalid},
		{"no session", 1, 0, "a", "x", volume.ErrInvalid},
		{"no holder", 1, 1, "", "x", volume.ErrInvalid},
		{"first", 3, 2, "a", "x", nil},
		{"repeated by its holder", 3, 2, "a", "x", nil},
		{"the same from someone else", 3, 2, "b", "x", volume.ErrFenced},
		{"a higher session from someone else", 3, 9, "b", "x", volume.ErrFenced},
		{"a lower session", 3, 1, "a", "x", volume.ErrFenced},
		{"a lower epoch with a higher session", 2, 9, "a", "x", volume.ErrFenced},
		{"the next session", 3, 3, "a", "x", nil},
		{"a lower session again", 3, 2, "a", "x", volume.ErrFenced},
		{"the same from its holder's other claim", 3, 3, "a", "y", volume.ErrFenced},
		{"a higher session from its holder's other claim", 3, 9, "a", "y", volume.ErrFenced},
		{"a higher epoch of someone else", 4, 1, "b", "y", nil},
		{"a nonce that is too long", 5, 1, "a", strings.Repeat("x", maxNonceBytes+1), volume.ErrInvalid},
		{"the epoch before", 3, 4, "a", "x", volume.ErrFenced},
	}
	for _, restarted := range []string{"in one process", "restarted before each step"} {
		t.Run(restarted, func(t *testing.T) {
			u := uid(1)
			if restarted != "in one process" {
				u = uid(2)
				create(t, s, u, mib)
			}
			for _, step := range steps {
				if restarted != "in one process" {
					s = restart(t, s)
				}
				_, err := s.Open(deadline(t), OpenOptions{Volume: vol, UID: u, Epoch: step.epoch, Session: step.session, Holder: step.holder, Nonce: step.nonce})
				if !errors.Is(err, step.want) {
					t.Fatalf("%s: got %v, want %v", step.name, err, step.want)
				}
				if errors.Is(err, volume.ErrFenced) && !strings.Contains(err.Error(), "it has seen epoch") {
					t.Errorf("%s: does not name the epoch seen: %v", step.name, err)
				}
			}
			if i, err := s.Get(u); err != nil || i.Epoch != 4 || i.Session != 1 {
				t.Errorf("info %+v (%v)", i, err)
			}
		})
	}
}

// A replica that is made in the place of another one, on the same node, is closed to
// whoever was overtaken before that: by epochs the old one has seen, which the new
// one was never told of.
func TestMadeInAnEpoch(t *testing.T) {
	s := newServer(t, Options{})
	o := CreateOptions{Volume: vol, UID: uid(1), Pool: "p", SizeBytes: mib, Epoch: 7}
	for range 2 { // repeating it is harmless
		if err := s.Create(deadline(t), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"at once", "after a restart"} {
		_, err := s.Open(deadline(t), opening(uid(1), 6, 9))
		wantErr(t, "an overtaken writer, "+when, err, volume.ErrFenced)
		s = restart(t, s)
	}
	for _, step := range []struct {
		name    string
		epoch   volume.Epoch
		session volume.Session
		holder  volume.NodeID
		want    error
	}{
		{"the epoch's holder", 7, 1, "b", nil},
		{"another one of that epoch", 7, 2, "c", volume.ErrFenced},
		{"its next session", 7, 2, "b", nil},
		{"the next epoch", 8, 1, "c", nil},
	} {
		_, err := s.Open(deadline(t), OpenOptions{Volume: vol, UID: uid(1), Epoch: step.epoch, Session: step.session, Holder: step.holder, Nonce: "x"})
		wantErr(t, step.name, err, step.want)
	}
}

func TestOpenAnotherVolumesReplica(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	o := opening(uid(1), 1, 1)
	o.Volume = other
	_, err := s.Open(deadline(t), o)
	wantErr(t, "another volume's", err, volume.ErrInvalid)
	_, err = s.Open(deadline(t), opening(uid(2), 1, 1))
	wantErr(t, "missing", err, volume.ErrNotFound)
	_, err = s.Open(deadline(t), opening("../../etc", 1, 1))
	wantErr(t, "climbing", err, volume.ErrInvalid)
}

func TestOldSessionIsRefused(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	var ended error
	o := opening(uid(1), 1, 1)
	o.OnEnd = func(err error) { ended = err }
	old := open(t, s, o)
	if err := block.WriteAt(old, pattern(4096, 1), 0); err != nil {
		t.Fatal(err)
	}
	now := open(t, s, opening(uid(1), 2, 1))
	wantErr(t, "OnEnd", ended, volume.ErrFenced)
	wantErr(t, "write", block.WriteAt(old, pattern(4096, 2), 0), volume.ErrFenced)
	wantErr(t, "read", block.ReadAt(old, make([]byte, 4096), 0), volume.ErrFenced)
	wantErr(t, "flush", block.Flush(old), volume.ErrFenced)
	_, err := old.BlockStatus(0, 4096)
	wantErr(t, "block status", err, volume.ErrFenced)
	wantErr(t, "grow", old.Grow(deadline(t), 2*mib), volume.ErrFenced)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(now, got, 0); err != nil || string(got) != string(pattern(4096, 1)) {
		t.Errorf("the new session does not read what the old one wrote (%v)", err)
	}
}

func TestSessionThatIsOverStaysOver(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	told := false
	o := opening(uid(1), 1, 1)
	o.OnEnd = func(error) { told = true }
	ses := open(t, s, o)
	if again := open(t, s, opening(uid(1), 1, 1)); again != ses {
		t.Error("a repeated opening got another session")
	}
	if err := ses.Close(); err != nil {
		t.Fatal(err)
	}
	if told {
		t.Error("OnEnd was called for the session's own Close")
	}
	wantErr(t, "write after Close", block.WriteAt(ses, pattern(4096, 1), 0), volume.ErrClosed)
	_, err := s.Open(deadline(t), opening(uid(1), 1, 1))
	wantErr(t, "the same again", err, volume.ErrFenced)
	open(t, s, opening(uid(1), 1, 2))
}

// TestDraining: an opening answers only when the older session's last I/O has
// left the system call.
func TestDraining(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	img := withFaults(s)
	old := open(t, s, opening(uid(1), 1, 1))
	entered, let := make(chan struct{}), make(chan struct{})
	var inside atomic.Bool
	img.set(func(op string) error {
		if op == "write" {
			inside.Store(true)
			close(entered)
			<-let
			inside.Store(false)
		}
		return nil
	})
	wrote := make(chan error, 1)
	go func() { wrote <- block.WriteAt(old, pattern(4096, 1), 0) }()
	<-entered
	// The opening's deadline passes: it fails, but the old session is fenced.
	_, err := s.Open(expired(), opening(uid(1), 2, 1))
	wantErr(t, "open while the write hangs", err, volume.ErrPending)
	wantErr(t, "the old session's next write", block.WriteAt(old, pattern(4096, 3), 0), volume.ErrFenced)
	if i, err := s.Get(uid(1)); err != nil || i.Epoch != 2 {
		t.Errorf("info %+v (%v)", i, err)
	}
	_, err = s.Open(deadline(t), opening(uid(1), 1, 2))
	wantErr(t, "the fenced holder's next session", err, volume.ErrFenced)

	opened := make(chan error, 1)
	go func() {
		_, err := s.Open(deadline(t), opening(uid(1), 2, 1))
		if err == nil && inside.Load() {
			err = errors.New("opened while the older session's write was under way")
		}
		opened <- err
	}()
	close(let)
	if err := <-wrote; err != nil {
		t.Errorf("the write that was under way: %v", err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// dated is the image of the n-th opening; its writes check that no later one was
// answered meanwhile.
type dated struct {
	Image
	t        *testing.T
	n        int64
	answered *atomic.Int64
}

func (d *dated) WriteAt(p []byte, off int64) error {
	err := d.Image.WriteAt(p, off)
	if now := d.answered.Load(); now > d.n {
		d.t.Errorf("opening %d writes while opening %d has been answered", d.n, now)
	}
	return err
}

// TestTakeOversUnderLoad: many writers, many openings; no I/O of a session is
// under way once its successor's opening was answered.
func TestTakeOversUnderLoad(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	var answered atomic.Int64
	opened := int64(0) // openings are one at a time
	s.files = imageFiles(func(path string, mode Mode) (Image, error) {
		img, err := openOSImage(path, mode)
		opened++
		return &dated{Image: img, t: t, n: opened, answered: &answered}, err
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := pattern(4096, 1)
	for n := range int64(30) {
		ses := open(t, s, opening(uid(1), volume.Epoch(n+1), 1))
		answered.Store(n + 1)
		for range 4 {
			wg.Go(func() {
				err := error(nil)
				for err == nil {
					err = block.WriteAt(ses, buf, 0)
				}
				if !errors.Is(err, volume.ErrFenced) && !errors.Is(err, volume.ErrClosed) {
					t.Error(err)
				}
			})
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestLoopExcludesSessions(t *testing.T) {
	var attached atomic.Bool
	s := newServer(t, Options{LoopAttached: func(string) (bool, error) { return attached.Load(), nil }})
	create(t, s, uid(1), mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	path, release, err := s.ClaimLoop(deadline(t), opening(uid(1), 2, 1))
	if err != nil {
		t.Fatal(err)
	}
	if path != replicaDir(s, uid(1))+"/data.img" {
		t.Errorf("path %s", path)
	}
	wantErr(t, "the session before", block.WriteAt(ses, pattern(4096, 1), 0), volume.ErrFenced)
	check := func(when string) {
		t.Helper()
		_, err := s.Open(deadline(t), opening(uid(1), 3, 1))
		wantErr(t, "open "+when, err, volume.ErrPrecondition)
		wantErr(t, "delete "+when, s.Delete(deadline(t), vol, uid(1)), volume.ErrPrecondition)
		if i, err := s.Get(uid(1)); err != nil || i.Epoch != 2 {
			t.Errorf("%s: refused openings were recorded: %+v (%v)", when, i, err)
		}
	}
	check("while claimed")
	_, _, err = s.ClaimLoop(deadline(t), opening(uid(1), 3, 1))
	wantErr(t, "claim twice", err, volume.ErrPrecondition)
	if err := s.Grow(deadline(t), uid(1), 2, 1, 2*mib); err != nil {
		t.Errorf("grow under the claim: %v", err)
	}
	attached.Store(true)
	release()
	release()
	check("while the loop device is left")
	_, _, err = s.ClaimLoop(deadline(t), opening(uid(1), 1, 1))
	wantErr(t, "claim with an old epoch", err, volume.ErrFenced)
	_, release, err = s.ClaimLoop(deadline(t), opening(uid(1), 3, 1)) // adopts what is attached
	if err != nil {
		t.Fatal(err)
	}
	attached.Store(false)
	release()
	open(t, s, opening(uid(1), 4, 1))
}

// TestImageLock: two servers on one pool can't come up (the pool's lock), but an
// image may be in the hands of a tool that locks it.
func TestImageLock(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	foreign, err := openOSImage(replicaDir(s, uid(1))+"/data.img", Buffered)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(deadline(t), opening(uid(1), 1, 1))
	wantErr(t, "open", err, volume.ErrPrecondition)
	_, _, err = s.ClaimLoop(deadline(t), opening(uid(1), 2, 1))
	wantErr(t, "claim", err, volume.ErrPrecondition)
	if err := foreign.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, s, opening(uid(1), 2, 1)) // what was cut short may be repeated
	if _, err := openOSImage(replicaDir(s, uid(1))+"/data.img", Buffered); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("opened besides a session: %v", err)
	}
}
