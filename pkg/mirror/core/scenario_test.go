package core

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestScenarios runs the files in testdata. Each line of a "run" block is one
// event; below the block stand the actions that the machine answered it with
// and, where it changed, its state. The files read as a specification:
//
//	legs local remote remote          a machine for three replicas
//	start                             begin the opening
//	taken InSync InSync InSync clean  the epoch was taken; what the store said
//	opened 1 ok                       leg 1's present session was opened
//	opened 1 ok a                     the same, by the replica's incarnation a
//	write w1 0+8192                   a change is submitted, named w1
//	answer 1 w1 ok                    leg 1 answers it
//	lost 1                            leg 1's connection broke
//	swap ok                           the compare-and-swap under way succeeded
//	tick 3000                         time passes, up to this tick
//	lease 2000                        the lease of reads; before start
//	clock 3000                        the clock says so, though nobody told the tick
//
// Turns to copy are given at once, and not shown, unless the file says "turns by
// hand"; then
//
//	turn 1 65536                      leg 1's next copy may begin, of so many bytes
//
// Maps and the clearing of intent bits are answered at once, with every region
// and ok, unless the file says "by hand"; then
//
//	map 1 0,2                         leg 1's map has the regions 0 and 2
//	rotated 1 ok, dropped 1 ok        leg 1 answers a step of the clearing
//	corrected 1 0 ok                  leg 1's region 0 was corrected
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &scenario{ops: map[string]*Op{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd != "run" {
				t.Fatalf("unknown directive %q", d.Cmd)
			}
			var out strings.Builder
			for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
				fmt.Fprintf(&out, "%s\n", line)
				before := ""
				if s.m != nil {
					before = s.m.String()
				}
				s.event(t, strings.Fields(line))
				for actions := s.m.Take(nil); len(actions) > 0; actions = s.m.Take(nil) {
					for _, a := range actions {
						if a.Kind == AskTurn && !s.turnsByHand {
							continue
						}
						fmt.Fprintf(&out, "    %s\n", s.describe(a))
					}
					s.atOnce(actions)
				}
				if after := s.m.String(); after != before {
					fmt.Fprintf(&out, "  %s\n", after)
				}
				if err := s.m.CheckInvariants(); err != nil {
					t.Fatalf("%s: after %q: %v", path, line, err)
				}
			}
			return out.String()
		})
	})
}

type scenario struct {
	m           *Machine
	ops         map[string]*Op
	byHand      bool
	turnsByHand bool
	asked       []Action // AskTurn, ReadMap, Rotate and DropPrevious without an answer, if by hand
}

// atOnce answers what is not answered by hand.
func (s *scenario) atOnce(actions []Action) {
	for _, a := range actions {
		switch {
		case a.Kind != ReadMap && a.Kind != Rotate && a.Kind != DropPrevious && a.Kind != DropCopied && a.Kind != AskTurn:
		case a.Kind == AskTurn && !s.turnsByHand:
			s.m.Turn(a.Leg, a.Session, 1<<40)
		case s.byHand, a.Kind == AskTurn:
			s.asked = append(s.asked, a)
		case a.Kind == ReadMap:
			s.m.MapRead(a, OK, nil)
		case a.Kind == Rotate:
			s.m.Rotated(a, OK)
		default:
			s.m.Dropped(a, OK)
		}
	}
}

// answer takes the oldest question of a leg.
func (s *scenario) answer(t *testing.T, kind ActionKind, leg int) Action {
	t.Helper()
	i := slices.IndexFunc(s.asked, func(a Action) bool { return a.Kind == kind && a.Leg == leg })
	if i < 0 {
		t.Fatalf("leg %d was not asked", leg)
	}
	a := s.asked[i]
	s.asked = slices.Delete(s.asked, i, i+1)
	return a
}

func (s *scenario) event(t *testing.T, f []string) {
	t.Helper()
	switch f[0] {
	case "legs":
		cfg := Config{Patience: 8000, OpPatience: 64000, Reopen: 1000, CopyBytes: 65536, RegionBytes: 65536, Settle: 1 << 40, Corrections: 8}
		for _, k := range f[1:] {
			if ticks, ok := strings.CutPrefix(k, "rejoin="); ok {
				cfg.Rejoin = int64(atoi(t, ticks))
				continue
			}
			if ticks, ok := strings.CutPrefix(k, "settle="); ok {
				cfg.Settle = int64(atoi(t, ticks))
				continue
			}
			cfg.Legs = append(cfg.Legs, LegConfig{Local: k == "local"})
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.m, s.asked = m, nil
	case "by":
		s.byHand = true
	case "turns":
		s.turnsByHand = true
	case "map":
		a := s.answer(t, ReadMap, atoi(t, f[1]))
		set := bitmap.New(s.m.regions(s.m.size))
		switch f[2] {
		case "none":
		case "all":
			set = nil
		case "lost", "broken":
			s.m.MapRead(a, result(t, f[2]), nil)
			return
		default:
			for _, r := range strings.Split(f[2], ",") {
				set.Add(atoi(t, r))
			}
		}
		s.m.MapRead(a, OK, set)
	case "turn":
		a := s.answer(t, AskTurn, atoi(t, f[1]))
		s.m.Turn(a.Leg, a.Session, int64(atoi(t, f[2])))
	case "rotated":
		s.m.Rotated(s.answer(t, Rotate, atoi(t, f[1])), result(t, f[2]))
	case "dropped":
		leg, kind := atoi(t, f[1]), DropPrevious
		if s.m.legs[leg].step != stepNone {
			kind = DropCopied
		}
		s.m.Dropped(s.answer(t, kind, leg), result(t, f[2]))
	case "corrected":
		leg, off := atoi(t, f[1]), int64(atoi(t, f[2]))*s.m.cfg.RegionBytes
		i := slices.IndexFunc(s.m.correcting, func(op *Op) bool { return op.Off == off })
		if i < 0 {
			t.Fatalf("region %s is not being corrected", f[2])
		}
		s.m.Copied(leg, s.m.legs[leg].session, s.m.correcting[i], result(t, f[3]), len(f) > 4 && f[4] == "source")
	case "start":
		s.m.Start()
	case "taken":
		tk := Taken{Size: 131072}
		for _, w := range f[1:] {
			if w == "clean" || w == "unclean" {
				tk.WasClean = w == "clean"
				continue
			}
			w, kept, _ := strings.Cut(w, "#")
			tk.Incarnations = append(tk.Incarnations, volume.Incarnation(kept))
			state, change, _ := strings.Cut(w, "@")
			if change != "" {
				w = state
			}
			n, _ := strconv.ParseUint(change, 10, 64)
			tk.Changes = append(tk.Changes, n)
			tk.States = append(tk.States, volume.ReplicaState(w))
			tk.Reasons = append(tk.Reasons, "")
		}
		s.m.TakeDone(OK, tk)
	case "take-failed":
		s.m.TakeDone(result(t, f[1]), Taken{})
	case "opened":
		leg := atoi(t, f[1])
		o := Opening{Result: result(t, f[2]), Reason: strings.Join(f[3:], " ")}
		if o.Result == OK {
			o = Opening{Incarnation: volume.Incarnation(o.Reason)}
		}
		s.m.Opened(leg, s.m.legs[leg].session, o)
	case "write", "read", "flush":
		op := &Op{Kind: map[string]Kind{"write": Change, "read": Read, "flush": Flush}[f[0]], User: f[1]}
		if len(f) > 2 {
			off, n, _ := strings.Cut(f[2], "+")
			op.Off, op.Len = int64(atoi(t, off)), int64(atoi(t, n))
		}
		s.ops[f[1]] = op
		s.m.Submit(op)
	case "answer":
		leg := atoi(t, f[1])
		s.m.Answer(leg, s.m.legs[leg].session, s.op(t, leg, f[2]), result(t, f[3]))
	case "copied":
		leg := atoi(t, f[1])
		s.m.Copied(leg, s.m.legs[leg].session, s.m.legs[leg].copier, result(t, f[2]), len(f) > 3 && f[3] == "source")
	case "lost":
		leg := atoi(t, f[1])
		s.m.LegLost(leg, s.m.legs[leg].session, "connection reset")
	case "swap":
		s.m.SwapDone(result(t, f[1]))
	case "lease":
		s.m.cfg.Lease = int64(atoi(t, f[1]))
	case "clock":
		s.m.Clock(int64(atoi(t, f[1])))
	case "tick":
		s.m.Tick(int64(atoi(t, f[1])))
	case "grow":
		s.m.Grow(int64(atoi(t, f[1])))
	case "grown":
		leg := atoi(t, f[1])
		a := Action{Leg: leg, Session: s.m.legs[leg].session, Size: s.m.growTo}
		if f[2] == "to" { // an answer to that growth
			a.Size = int64(atoi(t, f[3]))
			f = f[2:]
		}
		s.m.Grown(a, result(t, f[2]), strings.Join(f[3:], " "))
	case "close":
		s.m.Close()
	default:
		t.Fatalf("unknown event %q", f)
	}
}

// op finds a submitted operation, or "probe1" or "confirm1", leg 1's last one; or with "own" the leg's own flush,
// or with "last-flush" the flush before a clean close, or with "cycle" the one before bits are cleared.
func (s *scenario) op(t *testing.T, leg int, name string) *Op {
	t.Helper()
	switch name {
	case "own":
		return s.m.legs[leg].copier
	case "last-flush":
		return s.m.inflight[0]
	case "cycle":
		return s.m.cycle.op
	}
	if s.ops[name] == nil {
		t.Fatalf("no operation %q", name)
	}
	return s.ops[name]
}

func (s *scenario) describe(a Action) string {
	name := func() string {
		switch {
		case a.Op.User != nil:
			return a.Op.User.(string)
		case a.Op.Kind == Flush:
			return "own flush"
		case a.Op.Kind.isCopy():
			return fmt.Sprintf("%d+%d", a.Op.Off, a.Op.Len)
		}
		return a.Op.Kind.String()
	}
	switch a.Kind {
	case Open:
		return fmt.Sprintf("open leg %d, session %d, size %d", a.Leg, a.Session, a.Size)
	case Send:
		if a.Op.Kind == Probe || a.Op.Kind == Confirm {
			s.ops[fmt.Sprintf("%s%d", a.Op.Kind, a.Leg)] = a.Op
		}
		return fmt.Sprintf("send %s to leg %d", name(), a.Leg)
	case Reply:
		return fmt.Sprintf("reply %s: %s", name(), a.Result)
	case Drop:
		return fmt.Sprintf("drop leg %d, session %d", a.Leg, a.Session)
	case Swap:
		return "swap " + describeWants(a.Change, &s.m.landed)
	case Copy:
		return fmt.Sprintf("copy %s from leg %d to leg %d", name(), a.Src, a.Leg)
	case AskTurn:
		return fmt.Sprintf("ask for a turn to copy to leg %d", a.Leg)
	case ReadMap:
		return fmt.Sprintf("read the %s map of leg %d", a.Map, a.Leg)
	case Rotate:
		return fmt.Sprintf("rotate leg %d", a.Leg)
	case DropPrevious:
		away := make([]string, len(a.Away))
		for i, o := range a.Away {
			away[i] = fmt.Sprintf("%d%s", o.Leg, describeProgress(o.Progress))
		}
		return fmt.Sprintf("drop previous of leg %d, away %v", a.Leg, away)
	case DropCopied:
		return fmt.Sprintf("drop copied of leg %d%s", a.Leg, describeProgress(a.Progress))
	case Grow:
		return fmt.Sprintf("grow leg %d to %d", a.Leg, a.Size)
	case Resized:
		return fmt.Sprintf("resized to %d", a.Size)
	case GrowDone:
		return fmt.Sprintf("grow done: %s %s", a.Result, a.Reason)
	case Serve:
		return "serve"
	case Stop:
		return fmt.Sprintf("stop: %s %s", a.Result, a.Reason)
	}
	return fmt.Sprintf("action %d", a.Kind)
}

func describeProgress(p volume.Progress) string {
	s := ""
	if p.Whole {
		s = " whole"
	}
	if p.Below > 0 {
		s += fmt.Sprintf(" but below %d", p.Below)
	}
	return s
}

func describeWants(w, landed *Wants) string {
	if w.Take {
		return "take a new epoch"
	}
	s := fmt.Sprint(w.States)
	for i, change := range w.Changes {
		if was := landed; was.States[i] != volume.InSync && w.States[i] != volume.InSync && change != was.Changes[i] {
			s += fmt.Sprintf(" %d@%d", i, change)
		}
	}
	if w.Paused {
		s += " paused"
	}
	if w.Release {
		s += fmt.Sprintf(" release clean=%v", w.Clean)
	}
	return fmt.Sprintf("%s size=%d", s, w.Size)
}

func result(t *testing.T, s string) Result {
	t.Helper()
	for r := OK; r <= Refused; r++ {
		if r.String() == s {
			return r
		}
	}
	t.Fatalf("unknown result %q", s)
	return OK
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
