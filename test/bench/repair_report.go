package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// figure is one number of the replication's, over all rounds.
type figure struct {
	Name       string    `json:"name"`
	Title      string    `json:"title"`
	Unit       string    `json:"unit"`
	Values     []float64 `json:"rounds"`
	References []float64 `json:"referenceRounds,omitempty"` // what each is compared with
	Reference  string    `json:"reference,omitempty"`
	// Exactly one of the two is promised, or none: of the ratio to the reference if
	// there is one, else of the value.
	AtLeast float64 `json:"atLeast,omitempty"`
	AtMost  float64 `json:"atMost,omitempty"`

	// Filled by add.
	Median   float64 `json:"median"`
	RefValue float64 `json:"referenceMedian,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"` // median of the rounds' ratios
	Low      float64 `json:"low"`             // of the ratios, or else of the values
	Top      float64 `json:"top"`
}

// figures are what can be measured, with what the project promises.
var figures = []figure{
	{Name: "cold-first", Title: "random write 4 KiB, depth 32, cold regions, the first seconds", Unit: "op/s", Reference: "without the bitmap"},
	{Name: "cold", Title: "the same, after that", Unit: "op/s", Reference: "without the bitmap", AtLeast: 0.8},
	{Name: "missed", Title: "resync of scattered writes of 4 KiB: moved, with hashes and headers", Unit: "MiB", AtMost: 128},
	{Name: "missed-time", Title: "its time", Unit: "s"},
	{Name: "rebuild", Title: "rebuild while nobody uses the volume", Unit: "MiB/s", Reference: "copy of the file", AtLeast: 0.5},
	{Name: "app-throughput", Title: "random write 4 KiB, depth 32, beside a rebuild", Unit: "op/s", Reference: "all in sync", AtLeast: 0.7},
	{Name: "app-p99", Title: "its 99 % latency", Unit: "µs", Reference: "all in sync", AtMost: 3},
	{Name: "rebuild-beside", Title: "that rebuild, over all", Unit: "MiB/s"},
	{Name: "silent", Title: "a replica's process is stopped: until it is given up", Unit: "s", AtMost: 10},
}

func newFigure(name string) *figure {
	for _, f := range figures {
		if f.Name == name {
			return &f
		}
	}
	panic("no figure " + name)
}

// last is the latest round, for people.
func (f *figure) last() string {
	n := len(f.Values) - 1
	if f.Reference == "" {
		return fmt.Sprintf("%.1f %s", f.Values[n], f.Unit)
	}
	return fmt.Sprintf("%s %.0f %s (%.2f)", f.Name, f.Values[n], f.Unit, f.Values[n]/f.References[n])
}

// repairReport is everything that a run found.
type repairReport struct {
	Began     time.Time     `json:"began"`
	Machine   machine       `json:"machine"`
	Options   RepairOptions `json:"options"`
	Rounds    int           `json:"rounds"`
	LoadBegin string        `json:"loadAtBegin"`
	LoadEnd   string        `json:"loadAtEnd"`
	Results   []figure      `json:"results"`
}

// add sums the rounds up.
func (r *repairReport) add(all ...*figure) {
	for _, f := range all {
		f.Median = median(f.Values)
		judged := f.Values
		if f.Reference != "" {
			f.RefValue = median(f.References)
			judged = make([]float64, len(f.Values))
			for i := range judged {
				judged[i] = f.Values[i] / f.References[i]
			}
			f.Ratio = median(judged)
		}
		f.Low, f.Top = quantile(judged, 0), quantile(judged, 1)
		r.Results = append(r.Results, *f)
	}
}

// judged is what a promise is about.
func (f *figure) judged() float64 {
	if f.Reference != "" {
		return f.Ratio
	}
	return f.Median
}

func (f *figure) verdict() error {
	x := f.judged()
	switch {
	case f.AtLeast > 0 && x < f.AtLeast:
		return fmt.Errorf("%s: %.2f, promised is at least %.2f", f.Title, x, f.AtLeast)
	case f.AtMost > 0 && x >= f.AtMost:
		return fmt.Errorf("%s: %.2f, promised is less than %.2f", f.Title, x, f.AtMost)
	}
	return nil
}

func (r *repairReport) verdict() error {
	var errs []error
	for i := range r.Results {
		errs = append(errs, r.Results[i].verdict())
	}
	return errors.Join(errs...)
}

// table is the report in Markdown.
func (r *repairReport) table() string {
	var b strings.Builder
	o := r.Options
	fmt.Fprintf(&b, "Taken %s on %d x %s, %.0f GiB of RAM, Linux %s, pools on %s, all three nodes on one disk. 3 replicas; cold regions of %d MiB; "+
		"%d MiB missed over %d MiB; rebuild of %d MiB. %d rounds, interleaved with what they are compared with; medians. Load average %s before, %s after.\n\n",
		r.Began.Format("2006-01-02"), r.Machine.CPUs, r.Machine.CPU, float64(r.Machine.RAMBytes)/(1<<30), r.Machine.Kernel, r.Machine.Filesystem,
		o.ColdBytes>>20, o.MissedBytes>>20, o.MissedOver>>20, o.Rebuild>>20, r.Rounds, r.LoadBegin, r.LoadEnd)
	fmt.Fprint(&b, "| what | result | compared with | ratio (lowest to highest round) | promised |\n|---|--:|---|--:|--:|\n")
	for _, f := range r.Results {
		with, ratio, promise := "", "", ""
		if f.Reference != "" {
			with = fmt.Sprintf("%.0f %s: %s", f.RefValue, f.Unit, f.Reference)
			ratio = fmt.Sprintf("%.2f (%.2f to %.2f)", f.Ratio, f.Low, f.Top)
		}
		switch {
		case f.AtLeast > 0:
			promise = fmt.Sprintf(">= %.1f", f.AtLeast)
		case f.AtMost > 0:
			promise = fmt.Sprintf("< %.0f", f.AtMost)
		}
		result := fmt.Sprintf("%.0f %s", f.Median, f.Unit)
		if f.Median < 100 {
			result = fmt.Sprintf("%.1f %s", f.Median, f.Unit)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", f.Title, result, with, ratio, promise)
	}
	if err := r.verdict(); err != nil {
		fmt.Fprint(&b, "\nWhat is promised and was not met in this run:\n\n")
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	return b.String()
}

func (r *repairReport) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
