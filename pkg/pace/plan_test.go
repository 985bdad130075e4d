package pace

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestOrder holds who gets the next turn: who has asked, and who is under way
// already, are given as "name:in-sync replicas" in the order of asking.
func TestOrder(t *testing.T) {
	cases := []struct {
		name    string
		running string // have a turn, since the beginning
		waiting string
		at      time.Duration
		want    string
	}{
		{"nobody asks", "", "", time.Second, ""},
		{"one", "", "a:1", time.Second, "a"},
		{"two of three, those with the fewest replicas in sync", "", "a:2 b:3 c:1", time.Second, "c a"},
		{"then the oldest", "", "a:2 b:2 c:2", time.Second, "a b"},
		{"one place is taken", "x:1", "a:2 b:3", time.Second, "a"},
		{"both places are taken", "x:1 y:1", "a:2", time.Second, ""},
		{"a step in less danger ends first", "x:3 y:3", "a:1 b:1", time.Second, ""},
		{"one of them has ended", "y:3", "a:1 b:1", time.Second, "a"},
		{"a step that is stuck makes room", "x:1 y:1", "a:2 b:2", stuckAfter, "a b"},
		{"two replicas of one volume take one place", "", "a:1 a:1 b:2 c:3", time.Second, "a b a"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPlan(Options{Volumes: 2})
			for f := range strings.FieldsSeq(c.running) {
				turn := parseTurn(t, f)
				p.ask(0, turn)
				e := p.entries[turn.step.Volume]
				e.waiting, e.running = nil, []*Turn{turn}
			}
			for f := range strings.FieldsSeq(c.waiting) {
				p.ask(time.Millisecond, parseTurn(t, f))
			}
			p.rate.begin(0, measured{})
			p.rate.allowed = mostRate
			var got []string
			for at := c.at; at < c.at+4*time.Millisecond; at += time.Millisecond { // the rate gives two at once
				p.rate.enter(copying, at)
				given, _ := p.next(at, measured{})
				for _, g := range given {
					got = append(got, string(g.step.Volume))
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("turns for %v, want %s", got, c.want)
			}
		})
	}
}

func parseTurn(t *testing.T, f string) *Turn {
	t.Helper()
	name, n, _ := strings.Cut(f, ":")
	turn := &Turn{step: Step{Volume: volume.ID(name)}, given: make(chan int64, 1), poked: make(chan struct{}, 1)}
	if _, err := fmt.Sscan(n, &turn.step.InSync); err != nil {
		t.Fatal(err)
	}
	return turn
}

// A volume in more danger takes the place of one that is under way at its next
// step, and a volume that asks again before it is done keeps its age.
func TestDangerComesFirst(t *testing.T) {
	p := newPlan(Options{Volumes: 1})
	p.rate.begin(0, measured{})
	p.rate.enter(copying, 0)
	p.rate.allowed = mostRate
	turn := func(f string, at time.Duration) *Turn {
		x := parseTurn(t, f)
		p.ask(at, x)
		return x
	}
	next := func(at time.Duration) string {
		p.rate.enter(copying, at)
		given, _ := p.next(at, measured{})
		var got []string
		for _, g := range given {
			got = append(got, string(g.step.Volume))
		}
		return strings.Join(got, " ")
	}
	first := turn("old:2", 1)
	if got := next(1); got != "old" {
		t.Fatalf("the only one gets no turn: %q", got)
	}
	young := turn("young:2", 2)
	again := turn("old:2", 3)
	p.done(first, 0)
	if got := next(3); got != "old" {
		t.Errorf("%q goes on, want the older one", got)
	}
	turn("danger:1", 4)
	turn("old:2", 5)
	p.done(again, 0)
	if got := next(5); got != "danger" {
		t.Errorf("%q goes on, want the one in danger", got)
	}
	p.done(young, 0)
	if p.entries["young"] != nil {
		t.Error("a volume that asks for nothing is still known")
	}
}
