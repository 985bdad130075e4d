package core

import (
	"fmt"
	"io"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// reached counts what the explorer saw the machines do.
type reached struct {
	actions [Stop + 1]int
	results [Stop + 1][Refused + 1]int
	phases  [Stopped + 1][Stopped + 1]int
	legs    [legUp + 1][legUp + 1]int
	steps   [stepPromote + 1][stepPromote + 1]int
	states  map[[2]volume.ReplicaState]int
	faults  [len(faultNames)]int
	resumed int // resyncs that began with less than everything, because of what was noted
	pairs   pairs
}

func (x *explorer) saw(h *holder, a Action) {
	if a.Kind == Reply && a.Result == OK && h.m.counted == 0 {
		x.broken = fmt.Sprintf("%v answered well without a leg that counts", h)
	}
	x.reached.actions[a.Kind]++
	x.reached.results[a.Kind][a.Result]++
}

// compare counts the transitions between a state and its successor.
func (x *explorer) compare(s, n *state) {
	r := x.reached
	if r.states == nil {
		r.states = map[[2]volume.ReplicaState]int{}
	}
	for i, h := range s.w.holders {
		g := n.w.holders[i]
		if h.dead {
			continue
		}
		r.phases[h.m.phase][g.m.phase]++
		for l := range h.m.legs {
			a, b := &h.m.legs[l], &g.m.legs[l]
			r.legs[a.phase][b.phase]++
			r.steps[a.step][b.step]++
			if x.set.behind && a.step == stepMaps && b.step == stepCopy && b.delta.Count() < int(x.set.size) {
				r.resumed++
			}
			r.states[[2]volume.ReplicaState{a.recorded, b.recorded}]++
		}
	}
	for f := range n.left.used {
		if n.left.used[f] && !s.left.used[f] {
			r.faults[f]++
		}
	}
}

// expected transitions: those that the machine has code for. One event may do
// several at once, so an opening that has nothing to record goes from fencing to
// serving.
var (
	expectedPhases = [][2]Phase{
		{Taking, Fencing}, {Taking, Stopped}, {Fencing, Recording}, {Fencing, Serving}, {Fencing, Releasing},
		{Fencing, Reading}, {Reading, Recording}, {Reading, Serving},
		{Recording, Serving}, {Recording, Releasing}, {Recording, Stopped}, {Serving, Draining}, {Serving, Flushing},
		{Serving, Stopped}, {Draining, Flushing}, {Draining, Stopped}, {Flushing, Releasing}, {Flushing, Stopped}, {Releasing, Stopped},
	}
	expectedLegs = [][2]legPhase{
		{legDown, legOpening}, {legOpening, legUp}, {legOpening, legDown}, {legUp, legDown},
	}
	expectedSteps = [][2]resyncStep{
		{stepNone, stepWait}, {stepNone, stepMaps}, {stepWait, stepMaps}, {stepMaps, stepCopy}, {stepCopy, stepDrain}, {stepCopy, stepFlush}, {stepDrain, stepFlush}, {stepFlush, stepPromote}, {stepPromote, stepNone},
		{stepCopy, stepNone}, {stepDrain, stepNone}, {stepFlush, stepNone},
	}
	expectedStates = [][2]volume.ReplicaState{
		{volume.InSync, volume.Outdated}, {volume.InSync, volume.Failed}, {volume.Outdated, volume.Rebuilding},
		{volume.Rebuilding, volume.Outdated}, {volume.Rebuilding, volume.InSync}, {volume.Outdated, volume.InSync}, {volume.Outdated, volume.Failed},
	}
	actionNames = [...]string{
		Open: "open", Send: "send", Reply: "reply", Drop: "drop", Swap: "swap", Copy: "copy", AskTurn: "ask turn", Grow: "grow",
		ReadMap: "read map", Rotate: "rotate", DropPrevious: "drop previous", DropCopied: "drop copied",
		Resized: "resized", GrowDone: "grow done", Serve: "serve", Stop: "stop",
	}
)

// report lists what was reached and returns what was not.
func (r *reached) report(out io.Writer) (missing []string) {
	line := func(n int, format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		fmt.Fprintf(out, "reached %12d  %s\n", n, what)
		if n == 0 {
			missing = append(missing, what)
		}
	}
	for k := Open; int(k) < len(actionNames); k++ {
		line(r.actions[k], "action %s", actionNames[k])
	}
	for _, res := range []Result{OK, Fenced, Broken, Refused, Lost} {
		line(r.results[Stop][res], "action stop: %s", res)
	}
	for _, p := range expectedPhases {
		line(r.phases[p[0]][p[1]], "phase %s -> %s", p[0], p[1])
	}
	for _, p := range expectedLegs {
		line(r.legs[p[0]][p[1]], "leg %s -> %s", p[0], p[1])
	}
	for _, p := range expectedSteps {
		line(r.steps[p[0]][p[1]], "resync %s -> %s", p[0], p[1])
	}
	for _, p := range expectedStates {
		line(r.states[p], "recorded %s -> %s", p[0], p[1])
	}
	line(r.resumed, "resync resumed")
	for f, n := range r.faults {
		line(n, "fault %s", faultNames[f])
	}
	return missing
}
