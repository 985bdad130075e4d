package store

import (
	"log/slog"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestLiveness(t *testing.T) {
	now := time.Unix(1000, 0)
	l := NewLiveness(nil, slog.New(slog.DiscardHandler))
	l.now = func() time.Time { return now }
	l.since = now
	put := func(beat uint64, leaving bool) {
		l.observe(Event[volume.NodeID, volume.Node]{Kind: Put, Key: "n1", Object: volume.Node{ID: "n1", Heartbeat: beat, Lease: 4 * time.Second, Leaving: leaving}})
	}
	steps := []struct {
		name string
		do   func()
		want bool
	}{
		{"never seen, just started", func() {}, true},
		{"never seen for long", func() { now = now.Add(unknownLease) }, false},
		{"first seen: may be fresh", func() { put(7, false) }, true},
		{"the lease runs", func() { now = now.Add(3 * time.Second) }, true},
		{"the same heartbeat again renews nothing", func() { put(7, false); now = now.Add(time.Second) }, false},
		{"a new heartbeat does", func() { put(8, false) }, true},
		{"leaving ends it at once", func() { put(9, true) }, false},
		{"back again", func() { put(10, false) }, true},
		{"deleted", func() { l.observe(Event[volume.NodeID, volume.Node]{Kind: Deleted, Key: "n1"}) }, false},
	}
	for _, s := range steps {
		s.do()
		if got := l.Fresh("n1"); got != s.want {
			t.Errorf("%s: fresh = %v, want %v", s.name, got, s.want)
		}
	}
}
