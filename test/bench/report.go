package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// result is one side under one workload, over all rounds.
type result struct {
	Side     string   `json:"side"`
	Workload string   `json:"workload"`
	Unit     string   `json:"unit"`
	Median   float64  `json:"median"`
	MeanUS   float64  `json:"latencyUs"` // median of the rounds' means
	P99US    float64  `json:"p99Us"`     // median of the rounds' 99th percentiles
	Spread   float64  `json:"spread"`    // middle half of the rounds, relative to the median
	Ratio    float64  `json:"ratio"`     // median of the rounds' ratios to the direct loop device
	RatioLow float64  `json:"ratioLow"`  // their lowest
	RatioTop float64  `json:"ratioTop"`  // their highest
	Floor    float64  `json:"floor,omitempty"`
	Rounds   []sample `json:"rounds"`

	Uncertainty float64 `json:"uncertainty"` // of Ratio, relative to it
}

// idle is what a node process takes with volumes that nobody uses.
type idle struct {
	Volumes     int     `json:"volumes"`
	MemoryBytes int64   `json:"memoryBytes"` // resident
	Cores       float64 `json:"cores"`
	Seconds     float64 `json:"seconds"` // over which Cores was taken
}

// report is everything that a run found.
type report struct {
	Began     time.Time `json:"began"`
	Machine   machine   `json:"machine"`
	SizeBytes int64     `json:"sizeBytes"`
	Runtime   string    `json:"runtime"`
	Warmup    string    `json:"warmup"`
	Rounds    int       `json:"rounds"` // of every workload; some have more
	LoadBegin string    `json:"loadAtBegin"`
	LoadEnd   string    `json:"loadAtEnd"`
	Results   []result  `json:"results"`
	Idle      *idle     `json:"idle,omitempty"`
}

// machine is where a run took place.
type machine struct {
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	RAMBytes   int64  `json:"ramBytes"`
	Kernel     string `json:"kernel"`
	Filesystem string `json:"filesystem"` // of the pools
}

// summarize makes the results of one side.
func summarize(w workload, side string, samples, base []sample) result {
	v := values(samples, func(s sample) float64 { return s.Value })
	q := ratios(samples, base)
	return result{
		Side: side, Workload: w.Name, Unit: w.unit(), Rounds: samples, Floor: floors[side][w.Name],
		Median: median(v), Spread: spread(v),
		MeanUS: median(values(samples, func(s sample) float64 { return s.MeanUS })),
		P99US:  median(values(samples, func(s sample) float64 { return s.P99US })),
		Ratio:  median(q), RatioLow: quantile(q, 0), RatioTop: quantile(q, 1), Uncertainty: uncertainty(q),
	}
}

// verdict lists the floors that are missed or can't be told.
func (r *report) verdict() error {
	var errs []error
	for _, x := range r.Results {
		errs = append(errs, x.verdict())
	}
	if i := r.Idle; i != nil {
		if i.MemoryBytes > idleMemoryBytes {
			errs = append(errs, fmt.Errorf("a node process with %d idle volumes takes %d MiB, the limit is %d", i.Volumes, i.MemoryBytes>>20, idleMemoryBytes>>20))
		}
		if i.Cores > idleCores {
			errs = append(errs, fmt.Errorf("a node process with %d idle volumes takes %.2f %% of a core, the limit is %.0f %%", i.Volumes, 100*i.Cores, 100*idleCores))
		}
	}
	return errors.Join(errs...)
}

// table is the report in Markdown.
func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Taken %s on %d x %s, %.0f GiB of RAM, Linux %s, pools on %s. fio, direct=1, %d MiB per file or volume, "+
		"%d interleaved rounds of %s (more where they spread wide), each after a warm-up of %s on every side alike; medians. Load average %s before, %s after.\n\n",
		r.Began.Format("2006-01-02"), r.Machine.CPUs, r.Machine.CPU, float64(r.Machine.RAMBytes)/(1<<30), r.Machine.Kernel, r.Machine.Filesystem,
		r.SizeBytes>>20, r.Rounds, r.Runtime, r.Warmup, r.LoadBegin, r.LoadEnd)
	fmt.Fprint(&b, "| workload | side | result | mean latency | 99 % | ratio to direct loop (lowest to highest round) | floor |\n|---|---|--:|--:|--:|--:|--:|\n")
	for _, x := range r.Results {
		floor := ""
		if x.Floor > 0 {
			floor = fmt.Sprintf("%.2f", x.Floor)
		}
		fmt.Fprintf(&b, "| %s | %s | %.0f %s | %.0f µs | %.0f µs | %.2f (%.2f to %.2f) | %s |\n",
			title(x.Workload), sideTitles[x.Side], x.Median, x.Unit, x.MeanUS, x.P99US, x.Ratio, x.RatioLow, x.RatioTop, floor)
	}
	if i := r.Idle; i != nil {
		fmt.Fprintf(&b, "\nA node process with %d staged volumes that nobody uses takes %.0f MiB of memory and %.2f %% of a core (over %.0f s; limits %d MiB and %.0f %%).\n",
			i.Volumes, float64(i.MemoryBytes)/(1<<20), 100*i.Cores, i.Seconds, idleMemoryBytes>>20, 100*idleCores)
	}
	if err := r.verdict(); err != nil {
		fmt.Fprint(&b, "\nWhat is promised and was not met, or can't be told, in this run:\n\n")
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	return b.String()
}

func title(name string) string {
	for _, w := range workloads {
		if w.Name == name {
			return w.Title
		}
	}
	return name
}

func (r *report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// What marks the place of the table in README.md.
const (
	tableBegin = "<!-- bench:begin -->"
	tableEnd   = "<!-- bench:end -->"
)

// checkReadme says whether a file has a place for the table.
func checkReadme(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = replaceTable(string(b), "")
	return err
}

// replaceTable puts table between the marks in text.
func replaceTable(text, table string) (string, error) {
	head, rest, ok1 := strings.Cut(text, tableBegin)
	_, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("there is no %s followed by %s in it", tableBegin, tableEnd)
	}
	return head + tableBegin + "\n" + table + tableEnd + tail, nil
}

func writeReadme(path, table string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := replaceTable(string(b), table)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// field finds a line "name<sep>value" in a file of /proc.
func field(path, name, sep string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), sep); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// load is the machine's load average over one minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
