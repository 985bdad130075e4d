package memory_test

import (
	"errors"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/store/memory"
	"github.com/holdfast-csi/holdfast/pkg/store/storetest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		other := memory.New()
		s := other.Connect()
		t.Cleanup(func() {
			if err := errors.Join(s.Close(), other.Close()); err != nil {
				t.Error(err)
			}
		})
		return storetest.Subject{
			Store: s, Other: other,
			Cut:         s.Pause,
			LoseAnswers: func() { s.SetFault(func(memory.Op) memory.Fault { return memory.After }) },
			Restore:     func() { s.SetFault(nil); s.Resume() },
			Break:       s.BreakWatches,
			Compact:     func(*testing.T) {}, // it keeps no history
			PutRaw:      func(_ *testing.T, path string, data []byte) { other.PutRaw(path, data) },
		}
	})
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name         string
		fault        memory.Fault
		first, later uint64 // heartbeat after the update, and after Settle
	}{
		{"before", memory.Before, 0, 0},
		{"after", memory.After, 1, 1},
		{"late", memory.Late, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := memory.New()
			defer s.Close()
			n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
			if err != nil {
				t.Fatal(err)
			}
			s.FailNext(tt.fault)
			n.Heartbeat = 1
			if _, err := s.Nodes().Update(t.Context(), n); !errors.Is(err, volume.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			check := func(want uint64) {
				t.Helper()
				if got, err := s.Nodes().Get(t.Context(), "a"); err != nil || got.Heartbeat != want {
					t.Fatalf("heartbeat %d (%v), want %d", got.Heartbeat, err, want)
				}
			}
			check(tt.first)
			s.Settle()
			check(tt.later)
		})
	}
}

// A late update that somebody overtook must not be applied.
func TestLateIsStillConditional(t *testing.T) {
	s := memory.New()
	defer s.Close()
	n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
	if err != nil {
		t.Fatal(err)
	}
	s.FailNext(memory.Late)
	n.Heartbeat = 1
	if _, err := s.Nodes().Update(t.Context(), n); !errors.Is(err, volume.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	n.Heartbeat = 2
	if _, err := s.Nodes().Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	s.Settle()
	if got, err := s.Nodes().Get(t.Context(), "a"); err != nil || got.Heartbeat != 2 {
		t.Fatalf("heartbeat %d (%v), want 2", got.Heartbeat, err)
	}
}
