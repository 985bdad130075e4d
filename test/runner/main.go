// Command runner is `make test`: it runs every test of the repository through
// `go test -json`, prints each package's result as it comes, each skipped test
// with its reason, and as the very last line
//
//	N passed, 0 failed, S skipped
//
// Tests are counted at the leaves: a test with subtests counts only if it fails
// while none of them does. A package that doesn't build, panics or runs out of
// time counts as one failed test. The run fails when a test failed, when there
// was no test at all, and when a loop device, mount, process or file of the
// tests is left at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stage is one call of `go test`.
type stage struct {
	name     string
	packages []string
	flags    []string
	env      []string
	again    bool // of tests that were skipped before
}

// stages of a full run. Every test runs once (those that can't under the race
// detector without it). The packages run under the race
// detector, with their fuzz seeds and conformance suites; what starts real
// processes and uses the whole machine runs afterwards, one package at a time.
var stages = []stage{
	{
		name:     "unit, fuzz seeds and conformance, with the race detector",
		packages: []string{"./pkg/...", "./cmd/..."},
		flags:    []string{"-race", "-timeout=15m"},
		env:      []string{"CGO_ENABLED=1"}, // the race detector is C
	},
	{
		name:     "csi-sanity and integration, with real processes",
		packages: []string{"./test/..."},
		flags:    []string{"-p=1", "-timeout=20m"},
	},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, errFailed) {
			fmt.Fprintln(os.Stderr, "test:", err)
		}
		stop()
		os.Exit(1)
	}
}

// errFailed: the summary says it all.
var errFailed = errors.New("tests failed")

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("runner", flag.ContinueOnError)
	bin := fs.String("bin", "", "directory with the built commands, told to the tests as "+binVariable)
	only := fs.String("only", "", "run these packages alone, one at a time")
	verbose := fs.Bool("verbose", false, "print the tests' output")
	if err := fs.Parse(args); err != nil {
		return err
	}
	todo := stages
	if *only != "" {
		todo = []stage{{name: *only, packages: []string{*only}, flags: []string{"-p=1", "-timeout=20m"}}}
	}
	// All that the tests make is below one directory, which tells what is theirs
	// from what else happens on the machine. Its path is short for the sake of
	// unix sockets.
	scratch, err := os.MkdirTemp("", "hf")
	if err != nil {
		return err
	}
	if scratch, err = filepath.EvalSymlinks(scratch); err != nil {
		return err
	}
	env := append(os.Environ(), "TMPDIR="+scratch, markVariable+"="+scratch)
	if *bin != "" {
		env = append(env, binVariable+"="+*bin)
	}
	started := time.Now()
	t := newTally(out, *verbose)
	for len(todo) > 0 && ctx.Err() == nil {
		fmt.Fprintf(out, "== %s\n", todo[0].name)
		if err := todo[0].run(ctx, t, env); err != nil {
			t.fail("go test", err.Error())
		}
		var again []stage
		if !todo[0].again {
			again = plainStages(t.takePlain())
		}
		todo = append(again, todo[1:]...)
	}
	if ctx.Err() != nil {
		t.fail("the run", "it was interrupted")
	}
	t.leftBehind(scratch, endPatience)
	fmt.Fprintf(out, "== took %s on %d cores\n", time.Since(started).Round(time.Second), runtime.NumCPU())
	return t.summary()
}

// plainStages run tests again that don't work under the race detector.
func plainStages(tests map[string][]string) []stage {
	var out []stage
	for _, pkg := range slices.Sorted(maps.Keys(tests)) {
		out = append(out, stage{
			name:     "without the race detector: " + short(pkg) + " " + strings.Join(tests[pkg], ", "),
			packages: []string{pkg},
			again:    true,
			flags:    []string{"-timeout=15m", "-run=^(" + strings.Join(tests[pkg], "|") + ")$"},
		})
	}
	return out
}

// Environment variables that the tests may read.
const (
	binVariable  = "HOLDFAST_BIN"
	markVariable = "HOLDFAST_TEST_RUN" // marks all processes of a run
)

// run runs a stage and feeds the tally.
func (s stage) run(ctx context.Context, t *tally, env []string) error {
	args := append([]string{"test", "-json", "-count=1"}, s.flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, s.packages...)...)
	cmd.Env = append(env, s.env...)
	cmd.Stderr = os.Stderr
	// On an interrupt the tests get the chance to clean up.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := t.read(stdout)
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 && t.failed > 0 {
		err = nil // what failed is counted already
	}
	return errors.Join(readErr, err)
}
