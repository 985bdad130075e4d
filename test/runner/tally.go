package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json` (cmd/test2json, and cmd/go's
// build-output).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// testID names one test.
type testID struct{ pkg, name string }

// skip is a skipped test.
type skip struct {
	testID
	reason string
}

// parent is the test that ran id as a subtest.
func (id testID) parent() (testID, bool) {
	i := strings.LastIndexByte(id.name, '/')
	if i < 0 {
		return testID{}, false
	}
	return testID{id.pkg, id.name[:i]}, true
}

// tally counts results. It belongs to one goroutine.
type tally struct {
	out     io.Writer
	verbose bool

	passed, failed int
	skips          []skip // in order of arrival

	output  map[testID][]string // of tests that have not ended
	has     map[testID]bool     // has subtests
	hasFail map[testID]bool     // a subtest failed, or its own subtest did
	builds  map[string][]string // build output by import path
	pkgs    map[string]*pkgTally
}

type pkgTally struct{ passed, failed, skipped int }

func newTally(out io.Writer, verbose bool) *tally {
	return &tally{
		out: out, verbose: verbose,
		output: map[testID][]string{}, has: map[testID]bool{}, hasFail: map[testID]bool{},
		builds: map[string][]string{}, pkgs: map[string]*pkgTally{},
	}
}

// read takes in the output of one `go test -json`.
func (t *tally) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				t.event(e)
			} else { // the go command itself speaks
				fmt.Fprintf(t.out, "%s", line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
}

func (t *tally) event(e event) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		t.builds[e.ImportPath] = append(t.builds[e.ImportPath], e.Output)
	case "run":
		if p, ok := id.parent(); ok {
			t.has[p] = true
		}
	case "output":
		if t.verbose {
			fmt.Fprint(t.out, e.Output)
		}
		t.output[id] = append(t.output[id], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e)
		} else {
			t.endTest(e, id)
		}
		delete(t.output, id)
	}
}

func (t *tally) endTest(e event, id testID) {
	p := t.pkg(e.Package)
	if e.Action == "fail" {
		if parent, ok := id.parent(); ok {
			t.hasFail[parent] = true
		}
		if t.hasFail[id] { // counted where it happened
			fmt.Fprintf(t.out, "%s", indent(t.output[id]))
			return
		}
		t.failed++
		p.failed++
		fmt.Fprintf(t.out, "--- FAIL %s %s (%.1f s)\n%s", short(e.Package), e.Test, e.Elapsed, indent(t.output[id]))
		return
	}
	if e.Action == "pass" {
		if !t.has[id] {
			t.passed++
			p.passed++
		}
		return
	}
	p.skipped++
	t.skips = append(t.skips, skip{id, reason(t.output[id])})
}

func (t *tally) endPackage(e event) {
	p := t.pkg(e.Package)
	delete(t.pkgs, e.Package) // it may be run again
	switch {
	case e.Action == "fail" && e.FailedBuild != "":
		t.fail(short(e.Package), "does not build\n"+indent(t.builds[e.FailedBuild]))
	case e.Action == "fail" && p.failed == 0:
		// A panic, a time-out or an exit: what was running has no result.
		t.fail(short(e.Package), "ended before its tests did\n"+indent(t.unfinished(e.Package)))
	case p.passed+p.failed+p.skipped > 0:
		word := "ok  "
		if p.failed > 0 {
			word = "FAIL"
		}
		fmt.Fprintf(t.out, "%s %-28s %4d passed %3d failed %3d skipped %7.1f s\n", word, short(e.Package), p.passed, p.failed, p.skipped, e.Elapsed)
	}
}

// unfinished is the output of a package and of its tests without a result.
func (t *tally) unfinished(pkg string) []string {
	var ids []testID
	for id := range t.output {
		if id.pkg == pkg {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b testID) int { return strings.Compare(a.name, b.name) })
	var out []string
	for _, id := range ids {
		out = append(out, t.output[id]...)
		delete(t.output, id)
	}
	return out
}

// fail counts a failure that is not a test's.
func (t *tally) fail(what, why string) {
	t.failed++
	fmt.Fprintf(t.out, "--- FAIL %s: %s\n", what, strings.TrimRight(why, "\n"))
}

// plainReason begins the reason of a skip under the race detector that a build
// without it cures.
const plainReason = "needs a build without -race"

// takePlain takes out the skips that a build without the race detector cures,
// and returns these top-level tests by package.
func (t *tally) takePlain() map[string][]string {
	again := map[string][]string{}
	t.skips = slices.DeleteFunc(t.skips, func(s skip) bool {
		if !strings.HasPrefix(s.reason, plainReason) {
			return false
		}
		top, _, _ := strings.Cut(s.name, "/")
		if !slices.Contains(again[s.pkg], top) {
			again[s.pkg] = append(again[s.pkg], top)
		}
		return true
	})
	return again
}

func (t *tally) pkg(name string) *pkgTally {
	p := t.pkgs[name]
	if p == nil {
		p = &pkgTally{}
		t.pkgs[name] = p
	}
	return p
}

// summary prints the skips and the last line.
func (t *tally) summary() error {
	for _, s := range t.skips {
		fmt.Fprintf(t.out, "skipped %s %s: %s\n", short(s.pkg), s.name, s.reason)
	}
	if t.passed+t.failed+len(t.skips) == 0 {
		t.fail("the run", "there was no test at all")
	}
	fmt.Fprintf(t.out, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, len(t.skips))
	if t.failed > 0 {
		return errFailed
	}
	return nil
}

const modulePrefix = "github.com/holdfast-csi/holdfast/"

func short(pkg string) string { return strings.TrimPrefix(pkg, modulePrefix) }

// frame matches the lines with which the testing package surrounds a test.
var frame = regexp.MustCompile(`^\s*(=== (RUN|PAUSE|CONT|NAME)|--- (PASS|FAIL|SKIP))\b`)

// location matches "    file.go:12: " before a message.
var location = regexp.MustCompile(`^\s*[\w./-]+\.go:\d+: `)

// reason is the last message of a skipped test: what t.Skip said.
func reason(output []string) string {
	var message []string
	for _, line := range strings.SplitAfter(strings.Join(output, ""), "\n") {
		switch {
		case frame.MatchString(line), strings.TrimSpace(line) == "":
		case location.MatchString(line):
			message = []string{strings.TrimSpace(location.ReplaceAllString(line, ""))}
		default: // a further line of the message
			message = append(message, strings.TrimSpace(line))
		}
	}
	if len(message) == 0 {
		return "no reason given"
	}
	return strings.Join(message, " ")
}

// indent is what to show of a failure, without frames; long output keeps its
// beginning and its end.
func indent(output []string) string {
	var lines []string
	for line := range strings.Lines(strings.Join(output, "")) {
		if !frame.MatchString(line) {
			lines = append(lines, "    "+strings.TrimRight(line, "\n")+"\n")
		}
	}
	const keep = 150
	if len(lines) > 2*keep {
		cut := fmt.Sprintf("    ... %d lines left out ...\n", len(lines)-2*keep)
		lines = append(append(slices.Clone(lines[:keep]), cut), lines[len(lines)-keep:]...)
	}
	return strings.Join(lines, "")
}
