package main

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStats(t *testing.T) {
	cases := []struct {
		name           string
		v              []float64
		median, spread float64
	}{
		{"one", []float64{7}, 7, 0},
		{"odd", []float64{5, 1, 3}, 3, 2.0 / 3},
		{"even", []float64{4, 1, 2, 3}, 2.5, 0.6},
		{"one outlier", []float64{10, 10, 10, 10, 99}, 10, 0},
		{"wide", []float64{1, 2, 4, 8, 16}, 4, 1.5},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if m := median(c.v); m != c.median {
				t.Errorf("median %v, want %v", m, c.median)
			}
			if s := spread(c.v); math.Abs(s-c.spread) > 1e-9 {
				t.Errorf("spread %v, want %v", s, c.spread)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	rounds := func(v ...float64) []sample {
		s := make([]sample, len(v))
		for i := range v {
			s[i].Value = v[i]
		}
		return s
	}
	base := rounds(100, 200, 100, 200, 100)
	cases := []struct {
		name, side, workload string
		samples              []sample
		want                 string
	}{
		{"holds, as the machine's mood cancels out", sideThree, "randread-1", rounds(95, 190, 95, 190, 95), ""},
		{"missed", sideThree, "randread-1", rounds(80, 160, 80, 160, 80), "0.80 of the direct loop device, the floor is 0.90"},
		{"too wide to tell", sideThree, "randread-1", rounds(50, 300, 95, 100, 150), "too wide to tell"},
		{"nothing promised", sideRaw, "randread-1", rounds(1, 2, 1, 2, 1), ""},
		{"nothing promised, too wide to tell", sideRaw, "randread-1", rounds(1, 1, 1, 1, 1), "too wide to tell"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := summarize(workloads[2], c.side, c.samples, base).verdict()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestBalanced: in a whole number of cycles each side is equally often at each
// place, and equally often right after each other one.
func TestBalanced(t *testing.T) {
	for n := 1; n <= 7; n++ {
		orders := balanced(n)
		place, after := map[[2]int]int{}, map[[2]int]int{}
		for _, order := range orders {
			for at, side := range order {
				place[[2]int{at, side}]++
				if at > 0 {
					after[[2]int{order[at-1], side}]++
				}
			}
		}
		for _, counts := range []map[[2]int]int{place, after} {
			for pair, count := range counts {
				if want := len(orders) / n; count != want {
					t.Errorf("%d sides: %v occurs %d times, not %d", n, pair, count, want)
				}
			}
		}
		if len(place) != n*n || len(after) != n*(n-1) {
			t.Errorf("%d sides: %d places and %d pairs", n, len(place), len(after))
		}
	}
}

// TestTold: more rounds tell more, and what is far from the floor is told early.
func TestTold(t *testing.T) {
	one := []float64{0.8, 1, 1.2, 0.7, 1.3}
	if few, many := uncertainty(one), uncertainty(slices.Repeat(one, 4)); few <= many || few < 0.27 || few > 0.29 {
		t.Errorf("%.3f with five rounds, %.3f with twenty", few, many)
	}
	for _, c := range []struct {
		floor float64
		told  bool
	}{{0, false}, {1.1, false}, {0.9, false}, {0.7, true}, {1.3, true}} {
		r := result{Ratio: 1, Uncertainty: 0.25, Floor: c.floor}
		if r.told() != c.told {
			t.Errorf("floor %.1f: %v", c.floor, r.told())
		}
	}
}

// TestFloors holds the table of floors against the workloads.
func TestFloors(t *testing.T) {
	for side, of := range floors {
		if sideTitles[side] == "" {
			t.Errorf("there is no side %s", side)
		}
		for name, floor := range of {
			if some, err := selectWorkloads(name); err != nil || len(some) != 1 {
				t.Errorf("%s: %v", side, err)
			}
			if floor <= 0 || floor > 1 {
				t.Errorf("%s, %s: %v", side, name, floor)
			}
		}
	}
	if _, err := selectWorkloads("randread-1,nonsense"); err == nil {
		t.Error("an unknown workload was accepted")
	}
	if _, err := selectSides("three,nonsense"); err == nil {
		t.Error("an unknown side was accepted")
	}
	if all, err := selectSides(""); err != nil || len(all) != len(sideTitles) {
		t.Errorf("%v, %v", all, err)
	}
	if two, err := selectSides(sideThree); err != nil || len(two) != 2 || !two[sideLoop] {
		t.Errorf("%v, %v", two, err)
	}
}

func TestParseFIO(t *testing.T) {
	text := `fio: a warning
{ "jobs": [ { "error": 0,
  "read": { "iops": 0, "bw_bytes": 0 },
  "write": { "iops": 1234.5, "bw_bytes": 5242880, "clat_ns": { "mean": 81000, "percentile": { "99.000000": 200000 } } } } ] }`
	got, err := parseFIO(workloads[0], []byte(text))
	if want := (sample{1234.5, 81, 200}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := parseFIO(workload{rw: "write", mib: true}, []byte(text)); err != nil || got.Value != 5 {
		t.Errorf("%+v, %v; want 5 MiB/s", got, err)
	}
	for name, bad := range map[string]string{
		"no JSON": "oops", "no job": `{"jobs":[]}`, "an error": strings.Replace(text, `"error": 0`, `"error": 5`, 1),
		"nothing done": strings.Replace(text, "1234.5", "0", 1),
	} {
		if _, err := parseFIO(workloads[0], []byte(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReplaceTable(t *testing.T) {
	got, err := replaceTable("a\n"+tableBegin+"\nold\n"+tableEnd+"\nb\n", "new\n")
	if want := "a\n" + tableBegin + "\nnew\n" + tableEnd + "\nb\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for _, text := range []string{"", tableBegin, tableEnd + tableBegin} {
		if _, err := replaceTable(text, "x"); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestParseProcessTime(t *testing.T) {
	got, err := parseProcessTime("42 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0")
	if want := 3 * time.Second; err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "1 (x) S", "42 (x) S 1 2 3 4 5 6 7 8 9 10 x 50 0"} {
		if _, err := parseProcessTime(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestTable(t *testing.T) {
	r := report{Results: []result{summarize(workloads[0], sideThree, []sample{{100, 1, 2}}, []sample{{125, 1, 2}})}, Idle: &idle{Volumes: 10, MemoryBytes: 64 << 20, Cores: 0.004, Seconds: 30}}
	for _, want := range []string{"| random write 4 KiB, depth 1 | Holdfast, 3 replicas, writeback | 100 op/s | 1 µs | 2 µs | 0.80 (0.80 to 0.80) | 0.60 |", "10 staged volumes that nobody uses takes 64 MiB of memory and 0.40 % of a core"} {
		if got := r.table(); !strings.Contains(got, want) {
			t.Errorf("the table lacks %q:\n%s", want, got)
		}
	}
	if err := r.verdict(); err != nil {
		t.Error(err)
	}
	r.Idle.Cores, r.Idle.MemoryBytes = 0.02, 121<<20
	if err := r.verdict(); err == nil || !strings.Contains(err.Error(), "121 MiB") || !strings.Contains(err.Error(), "2.00 %") {
		t.Errorf("%v", err)
	}
}
