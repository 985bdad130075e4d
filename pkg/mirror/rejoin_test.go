package mirror

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// openWaiting opens the volume with some patience for replicas that restart.
func (w *world) openWaiting(node volume.NodeID) *Mirror {
	w.t.Helper()
	o := w.options(node)
	o.Rejoin = 30 * time.Second
	m, err := Open(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

// A replica whose process is restarted in time stays in sync: what was under way
// waits, reaches it, and nothing is copied.
func TestReplicaComesBack(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.openWaiting("a")
	if err := block.WriteAt(m, pattern(1, 4096), 0); err != nil {
		t.Fatal(err)
	}
	version := w.volume().Version
	w.reps["b"].kill()
	done := make(chan error, 1)
	go func() { done <- block.WriteAt(m, pattern(2, 4096), 8192) }()
	select {
	case err := <-done:
		t.Fatalf("acknowledged (%v) while a counted replica was gone", err)
	case <-time.After(100 * time.Millisecond):
	}
	w.reps["b"].set(func() { w.reps["b"].away = false })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if v := w.volume(); v.Version != version {
		t.Errorf("the store was changed: %+v", v.Status)
	}
	if n := w.reps["b"].disk.Count(block.OpWrite); n != 2 {
		t.Errorf("%d writes to the replica, want the 2 of the application", n)
	}
	w.close(m)
	w.equalReplicas()
}

// A replica whose node has forgotten is Outdated, however soon it comes back, and
// gets what it lacks.
func TestReplicaComesBackForgetful(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.openWaiting("a")
	if err := block.WriteAt(m, pattern(1, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	b := w.reps["b"]
	change := w.volume().Status.Replicas[1].Change
	b.kill()
	if err := block.WriteAt(b.disk, make([]byte, 4096), 4096); err != nil { // never flushed: gone
		t.Fatal(err)
	}
	b.set(func() { b.boot++; b.away = false })
	w.eventually("b is in sync again", func() bool {
		r := w.volume().Status.Replicas[1]
		return r.State == volume.InSync && r.Change > change
	})
	w.close(m)
	w.equalReplicas()
}

// After a crash of the writer, the replica that kept its memory is believed, not
// the one that has forgotten, be it this node's own.
func TestForgetfulReplicaIsNotTheSource(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.openWaiting("a")
	want := pattern(3, 4096)
	if err := block.WriteAt(m, want, 4096); err != nil {
		t.Fatal(err)
	}
	_ = m.Close() // as a crash
	a := w.reps["a"]
	if err := block.WriteAt(a.disk, make([]byte, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.boot++ })
	m = w.openWaiting("a")
	got := make([]byte, 4096)
	if err := block.ReadAt(m, got, 4096); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("what was acknowledged is gone, although a replica has it")
	}
	w.eventually("a is in sync again", func() bool { return w.state("a") == volume.InSync })
	w.close(m)
	w.equalReplicas()
}

// A replica that comes back and fails again at once is not waited for a second
// time: else a block that one of them can't read would never be read from another,
// and every acknowledgement would wait for that.
func TestReplicaComesBackIll(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.openWaiting("a")
	if err := block.WriteAt(m, pattern(1, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	w.reps["a"].disk.Fail(func(io *block.IO) error {
		if io.Op == block.OpRead {
			return unix.EIO
		}
		return nil
	})
	got := make([]byte, 4096)
	done := make(chan error, 1)
	go func() { done <- block.ReadAt(m, got, 4096) }()
	select {
	case err := <-done:
		if err != nil || !bytes.Equal(got, pattern(1, 4096)) {
			t.Errorf("read: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the read hangs: %s", m)
	}
	w.reps["a"].disk.Fail(nil)
}

// A change is sent to a leg's next session while the thread that was to send it in
// the one before has not done so: each has its own IO, else the one that comes late
// answers for the other.
func TestResendBesideLateSend(t *testing.T) {
	w := newWorld(t, mib, "a", "b")
	m := w.openWaiting("a")
	answers := make(chan error, 1)
	r := m.begin(&block.IO{Op: block.OpWrite, Len: 4096, Data: pattern(1, 4096), Done: func(_ *block.IO, err error) { answers <- err }})
	r.refs.Add(2) // as of three sendings, one of them for the reply
	leg := m.legs[1].Load()
	_, late := m.prepare(1, leg.session, &r.op)
	_, again := m.prepare(1, leg.session, &r.op)
	if late == again {
		t.Fatal("both sendings have the same IO")
	}
	again.Done(again, nil)
	late.Done(late, nil)                         // not as lost: the leg would be opened anew beside the test
	_, third := m.prepare(1, leg.session, &r.op) // of a request that has been answered
	if third != late {
		t.Error("a request that was answered is sent again with another IO")
	}
	third.Done(third, nil)
	if err := <-answers; err != nil {
		t.Error(err)
	}
}
