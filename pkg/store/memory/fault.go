package memory

import (
	"errors"
	"slices"
)

// Verb names what a request does.
type Verb string

// The verbs.
const (
	Get    Verb = "get"
	List   Verb = "list"
	Create Verb = "create"
	Update Verb = "update"
	Delete Verb = "delete"
)

// Op is one request, as a fault function sees it.
type Op struct {
	Verb Verb
	Kind string // "volumes" or "nodes"
	Key  string // "" for a list
}

// String renders the request.
func (o Op) String() string { return string(o.Verb) + " " + o.Kind + "/" + o.Key }

// changes says whether the request changes anything.
func (o Op) changes() bool { return o.Verb == Create || o.Verb == Update || o.Verb == Delete }

// Fault is what goes wrong with one request. Each of them answers
// ErrUnavailable.
type Fault uint8

// The faults.
const (
	None   Fault = iota
	Before       // never applied
	After        // applied, and the answer lost
	Late         // applied by Settle, if its condition still holds then
)

var errInjected = errors.New("injected fault")

// SetFault makes f decide about every request from now on; nil ends that. f is
// called without locks held and may block, so that a test can hold a request
// back; while it blocks nothing was applied yet.
func (s *Store) SetFault(f func(Op) Fault) {
	s.mu.Lock()
	s.fault = f
	s.mu.Unlock()
}

// FailNext makes the next creates, updates or deletes fail, one per fault
// given, in order (None lets one pass). It comes before SetFault's function.
func (s *Store) FailNext(faults ...Fault) {
	s.mu.Lock()
	s.next = append(s.next, faults...)
	s.mu.Unlock()
}

// Settle applies the Late changes, in the order in which they were asked for.
func (s *Store) Settle() {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	for _, apply := range late {
		apply()
	}
}

// Pause cuts the connection: requests wait until Resume, or until their
// deadline and then fail with ErrUnavailable; watches deliver nothing new.
func (s *Store) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		return
	}
	s.paused, s.open = true, make(chan struct{})
	s.breakWatchesLocked()
}

// Resume ends Pause. Watches deliver the present state again.
func (s *Store) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		s.paused = false
		close(s.open)
	}
}

// BreakWatches makes every watch of the connection deliver the state again, as
// after a broken connection or a compaction.
func (s *Store) BreakWatches() {
	s.mu.Lock()
	s.breakWatchesLocked()
	s.mu.Unlock()
}

func (s *Store) breakWatchesLocked() {
	close(s.broken)
	s.broken = make(chan struct{})
}

// PutRaw stores bytes as they are under "KIND/KEY", past all checks, for tests
// of corrupt or foreign content.
func (s *Store) PutRaw(path string, data []byte) {
	s.data.mu.Lock()
	defer s.data.mu.Unlock()
	s.data.revision++
	if key, ok := s.data.volumes.key(path); ok {
		s.data.volumes.putLocked(key, slices.Clone(data), s.data.revision)
	}
	if key, ok := s.data.nodes.key(path); ok {
		s.data.nodes.putLocked(key, slices.Clone(data), s.data.revision)
	}
}

// faultFor decides about one request.
func (s *Store) faultFor(op Op) Fault {
	s.mu.Lock()
	if op.changes() && len(s.next) > 0 {
		f := s.next[0]
		s.next = s.next[1:]
		s.mu.Unlock()
		return f
	}
	decide := s.fault
	s.mu.Unlock()
	if decide == nil {
		return None
	}
	return decide(op)
}
