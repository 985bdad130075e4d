package main

import (
	"testing"
	"time"
)

func TestEstimates(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	e := estimates{}
	cases := []struct {
		name  string
		after time.Duration
		done  int64
		rate  float64
		left  int64
		text  string
	}{
		{"nothing to compare with", 0, 100 << 20, 0, 900 << 20, ""},
		{"twice at the same moment", 0, 100 << 20, 0, 900 << 20, ""},
		{"steady", 2 * time.Second, 120 << 20, 10 << 20, 880 << 20, "  10Mi/s, 1m28s left"},
		{"faster; what was long ago does not count", 20 * time.Second, 840 << 20, 40 << 20, 160 << 20, "  40Mi/s, 4s left"},
		{"it stands", 40 * time.Second, 840 << 20, 0, 160 << 20, ""},
		{"begun anew", 41 * time.Second, 0, 0, 1 << 30, ""},
		{"and on", 42 * time.Second, 1 << 20, 1 << 20, 1023 << 20, "  1Mi/s, 17m3s left"},
	}
	for _, c := range cases {
		got := e.add("v n", point{start.Add(c.after), c.done})
		if got != c.rate {
			t.Errorf("%s: %.0f bytes per second, want %.0f", c.name, got, c.rate)
		}
		if text := remaining(c.left, got); text != c.text {
			t.Errorf("%s: %q, want %q", c.name, text, c.text)
		}
	}
	if got := remaining(1<<60, 1); got != "  1B/s" {
		t.Errorf("%q for one that takes for ever", got)
	}
}
