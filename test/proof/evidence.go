package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// record is one line of the evidence.
type record struct {
	At        time.Time        `json:"at"`
	Commit    string           `json:"commit"` // with "+" if the tree had changes
	Kind      string           `json:"kind"`   // explore, sim or mutants
	FirstSeed uint64           `json:"firstSeed,omitempty"`
	Counts    map[string]int64 `json:"counts"`
	Seconds   float64          `json:"seconds"`
	Load      string           `json:"load"` // of the machine, over the last minute
}

// note appends a record.
func note(ctx context.Context, path string, r record) error {
	if path == "" {
		return nil
	}
	r.At, r.Commit, r.Load = time.Now().UTC().Truncate(time.Second), commit(ctx), load()
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(out))
	// Documents and the evidence itself change nothing of what was proven.
	dirty, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", "*.go", "go.mod").Output()
	if err != nil || len(bytes.TrimSpace(dirty)) > 0 {
		name += "+"
	}
	return name
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// read returns the records of the evidence; none if there is no file.
func read(path string) ([]record, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []record
	for s := bufio.NewScanner(f); s.Scan(); {
		var r record
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, len(out)+1, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// sum adds the evidence up: by kind, the runs, their counts and their time.
func sum(w io.Writer, path string) error {
	records, err := read(path)
	if err != nil {
		return err
	}
	type total struct {
		runs    int
		seconds float64
		counts  map[string]int64
	}
	kinds := map[string]*total{}
	for _, r := range records {
		t := kinds[r.Kind]
		if t == nil {
			t = &total{counts: map[string]int64{}}
			kinds[r.Kind] = t
		}
		t.runs++
		t.seconds += r.Seconds
		for k, n := range r.Counts {
			t.counts[k] += n
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		t := kinds[kind]
		fmt.Fprintf(w, "%s: %d runs, %.1f hours", kind, t.runs, t.seconds/3600)
		for _, k := range slices.Sorted(maps.Keys(t.counts)) {
			fmt.Fprintf(w, ", %d %s", t.counts[k], k)
		}
		fmt.Fprintln(w)
	}
	return nil
}
