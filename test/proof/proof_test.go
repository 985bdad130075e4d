package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryMutantIsKnown holds the table against the names in the code.
func TestEveryMutantIsKnown(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "grep", "-rhoE", `mutant\.On\("[^"]+"\)`, "../../pkg", "--include=*.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	inCode := map[string]bool{}
	for _, m := range regexp.MustCompile(`On\("([^"]+)"\)`).FindAllStringSubmatch(string(out), -1) {
		inCode[m[1]] = true
	}
	for _, m := range all {
		if !inCode[m.name] {
			t.Errorf("%s is in the table and not in the code", m.name)
		}
	}
	for name := range inCode {
		known := slices.ContainsFunc(all, func(m mutant) bool { return m.name == name })
		if example := "ack-before-store"; !known && name != example {
			t.Errorf("%s is in the code and not in the table", name)
		}
	}
}

// TestSum: what was noted adds up, by kind.
func TestSum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "evidence.jsonl")
	for _, r := range []record{
		{Kind: "sim", FirstSeed: 1, Counts: map[string]int64{"seeds": 10, "lost": 0}, Seconds: 1800},
		{Kind: "explore", Counts: map[string]int64{"states": 7}, Seconds: 3600},
		{Kind: "sim", FirstSeed: 11, Counts: map[string]int64{"seeds": 5, "lost": 0}, Seconds: 1800},
	} {
		if err := note(context.Background(), path, r); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := sum(&out, path); err != nil {
		t.Fatal(err)
	}
	want := "explore: 1 runs, 1.0 hours, 7 states\nsim: 2 runs, 1.0 hours, 0 lost, 15 seeds\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if err := os.WriteFile(path, []byte("{}\nno\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sum(&out, path); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a damaged line: %v", err)
	}
}
