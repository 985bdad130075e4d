package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// events are lines as `go test -json` prints them, one scenario a test.
func TestTally(t *testing.T) {
	tests := []struct {
		name   string
		events string
		last   string   // the very last line
		has    []string // further text
		fails  bool
	}{
		{
			name: "a test passes",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Elapsed":0.1}`,
			last: "1 passed, 0 failed, 0 skipped",
		},
		{
			name: "subtests count, their parent does not",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			last: "2 passed, 0 failed, 0 skipped",
		},
		{
			name: "a failed subtest counts once",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/x/deep"}
{"Action":"output","Package":"p","Test":"TestA/x/deep","Output":"    a_test.go:7: it broke\n"}
{"Action":"fail","Package":"p","Test":"TestA/x/deep"}
{"Action":"fail","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`,
			last: "0 passed, 1 failed, 0 skipped", has: []string{"--- FAIL p TestA/x/deep", "it broke"}, fails: true,
		},
		{
			name: "a parent that fails by itself counts",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`,
			last: "1 passed, 1 failed, 0 skipped", fails: true,
		},
		{
			name: "a skip comes with its reason",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: looking\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: needs root: it mounts\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			last: "0 passed, 0 failed, 1 skipped", has: []string{"skipped p TestA: needs root: it mounts\n"},
		},
		{
			name: "a package that does not build fails",
			events: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
			last: "0 passed, 1 failed, 0 skipped", has: []string{"does not build", "syntax error"}, fails: true,
		},
		{
			name: "a package that panics fails, with the output of what was running",
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: at the disco\n"}
{"Action":"fail","Package":"p"}`,
			last: "0 passed, 1 failed, 0 skipped", has: []string{"ended before its tests did", "at the disco"}, fails: true,
		},
		{
			name:   "packages without test files are nothing",
			events: `{"Action":"skip","Package":"p"}`,
			last:   "0 passed, 1 failed, 0 skipped", has: []string{"no test at all"}, fails: true,
		},
		{
			name: "what the go command says is passed on",
			events: `go: no such thing
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			last: "1 passed, 0 failed, 0 skipped", has: []string{"go: no such thing"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			ta := newTally(&out, false)
			if err := ta.read(strings.NewReader(tt.events + "\n")); err != nil {
				t.Fatal(err)
			}
			if err := ta.summary(); errors.Is(err, errFailed) != tt.fails {
				t.Errorf("summary returned %v", err)
			}
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if last := lines[len(lines)-1]; last != tt.last {
				t.Errorf("last line is %q, want %q", last, tt.last)
			}
			for _, want := range tt.has {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, out.String())
				}
			}
		})
	}
}

func TestTakePlain(t *testing.T) {
	ta := newTally(&strings.Builder{}, false)
	ta.skips = []skip{
		{testID{"p", "TestA"}, "needs a build without -race: it allocates"},
		{testID{"p", "TestB"}, "needs root"},
		{testID{"p", "TestC/x"}, "needs a build without -race"},
		{testID{"p", "TestC/y"}, "needs a build without -race"},
		{testID{"q", "TestA"}, "needs a build without -race"},
	}
	again := plainStages(ta.takePlain())
	if len(again) != 2 || again[0].packages[0] != "p" || !slices.Contains(again[0].flags, "-run=^(TestA|TestC)$") || again[1].packages[0] != "q" {
		t.Errorf("to run again: %+v", again)
	}
	if len(ta.skips) != 1 || ta.skips[0].name != "TestB" {
		t.Errorf("skips left: %+v", ta.skips)
	}
}

func TestLeftBehind(t *testing.T) {
	scratch := t.TempDir()
	var out strings.Builder
	ta := newTally(&out, false)
	ta.leftBehind(scratch, 0)
	if ta.passed != 1 || ta.failed != 0 {
		t.Errorf("an empty directory gave %d passed, %d failed:\n%s", ta.passed, ta.failed, out.String())
	}

	scratch = t.TempDir()
	if err := os.WriteFile(filepath.Join(scratch, "forgotten"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "600")
	sleeper.Env = []string{markVariable + "=" + scratch}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = sleeper.Wait() // it was killed
	}()
	ta.leftBehind(scratch, 0)
	if ta.failed != 1 || !strings.Contains(out.String(), "forgotten") || !strings.Contains(out.String(), "sleep 600") {
		t.Errorf("what was left was not named:\n%s", out.String())
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Errorf("the process was not ended")
		_ = sleeper.Process.Kill()
		<-ended
	}
	if _, err := os.Stat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}
