package main

import (
	"flag"
	"strings"
	"testing"
	"time"
)

func TestParseResynced(t *testing.T) {
	log := `time=x level=INFO msg="replica resynced" node=n1 volume=v replica=n2 comparedBytes=10 copiedBytes=1 took=1s
time=x level=INFO msg="replica not in sync" node=n1
time=x level=INFO msg="replica resynced" node=n1 volume=v replica=n3 comparedBytes=1048576 copiedBytes=4096 took=1.5s
`
	got, err := parseResynced(log)
	if want := (resynced{1048576, 4096, 1500 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "msg=\"replica resynced\" comparedBytes=x copiedBytes=1 took=1s", strings.ReplaceAll(log, "1.5s", "soon")} {
		if _, err := parseResynced(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestFigures(t *testing.T) {
	cases := []struct {
		name         string
		figure       string
		values, refs []float64
		want         string // of the verdict
		row          string
	}{
		{"holds", "rebuild", []float64{300, 200, 100}, []float64{500, 400, 400}, "", "| 200 MiB/s | 400 MiB/s: copy of the file | 0.50 (0.25 to 0.60) | >= 0.5 |"},
		{"too slow", "rebuild", []float64{100}, []float64{500}, "0.20, promised is at least 0.50", "| 100 MiB/s | 500 MiB/s: copy of the file | 0.20 (0.20 to 0.20) | >= 0.5 |"},
		{"too much", "missed", []float64{127, 128, 200}, nil, "128.00, promised is less than 128", "| 128 MiB |  |  | < 128 |"},
		{"latency as a ratio", "app-p99", []float64{290, 300}, []float64{100, 100}, "", "| 295 µs | 100 µs: all in sync | 2.95 (2.90 to 3.00) | < 3 |"},
		{"nothing promised", "missed-time", []float64{9}, nil, "", "| 9.0 s |  |  |  |"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFigure(c.figure)
			f.Values, f.References = c.values, c.refs
			r := &repairReport{}
			r.add(f)
			if err := r.verdict(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if table := r.table(); !strings.Contains(table, c.row) {
				t.Errorf("the table lacks %q:\n%s", c.row, table)
			}
		})
	}
}

func TestRepairOptions(t *testing.T) {
	parse := func(args ...string) error {
		var o RepairOptions
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		o.AddFlags(fs)
		if err := fs.Parse(args); err != nil {
			return err
		}
		return o.Validate()
	}
	if err := parse(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for _, bad := range []string{"--repair-rounds=0", "--repair-rebuild=1000", "--repair-only=cold,nonsense", "--repair-app-time=1ms", "--repair-doc=/nowhere"} {
		if parse(bad) == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}
