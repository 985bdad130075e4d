// Package whole runs the demo's program from outside, as `make demo` does: under
// the race detector, interrupted at several moments, with the ground pulled from
// under it, and kept running. Whatever happens, nothing may be left behind.
package whole

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/standalone/left"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// patience bounds one run; the demo's own steps are bounded too.
const patience = 8 * time.Minute

// run is one run of the demo.
type run struct {
	dir   string // everything of it is there
	cmd   *exec.Cmd
	lines chan string // of its output; closed at its end
	text  strings.Builder
}

// build makes the demo's program, and the commands.
func build(t *testing.T) (demo, bin string) {
	t.Helper()
	dir := buildDemo(t)
	bin, err := kubelet.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "demo"), bin
}

// buildRace makes the demo's program, and commands that report data races.
func buildRace(t *testing.T) (demo, bin string) {
	t.Helper()
	dir := buildDemo(t)
	compile(t, []string{"CGO_ENABLED=1"}, "-race", "-o", dir+"/", "./cmd/...") // the race detector is C
	return filepath.Join(dir, "demo"), dir
}

func buildDemo(t *testing.T) (dir string) {
	t.Helper()
	if missing := kubelet.Missing(); missing != "" {
		t.Skip(missing)
	}
	dir = t.TempDir()
	compile(t, nil, "-o", dir+"/", "./test/demo")
	return dir
}

func compile(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", args, err, out)
	}
}

// start starts the demo in a directory of its own, in which nothing may be left
// at the test's end.
func start(t *testing.T, env []string, demo string, args ...string) *run {
	t.Helper()
	parent, err := os.MkdirTemp("", "hfd") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	r := &run{dir: filepath.Join(parent, "d"), lines: make(chan string, 10000)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.cmd = exec.CommandContext(ctx, demo, append(args, "--dir", r.dir)...)
	r.cmd.Env = append(os.Environ(), env...)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stdout, r.cmd.Stderr = in, in
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	go func() {
		defer close(r.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		defer cancel()
		_ = r.cmd.Process.Kill() // it has ended, or the test has failed
		_, _ = io.Copy(io.Discard, out)
		out.Close()
		cctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := left.Remove(cctx, parent); err != nil {
			t.Error(err)
		} else if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	return r
}

// until reads the output up to a line that has the text, and returns that line.
func (r *run) until(t *testing.T, text string) string {
	t.Helper()
	for line := range r.lines {
		r.text.WriteString(line + "\n")
		if strings.Contains(line, text) {
			return line
		}
	}
	t.Fatalf("the output never had %q:\n%s", text, r.text.String())
	return ""
}

// end reads the rest and waits for the program's end.
func (r *run) end() (output string, err error) {
	for line := range r.lines {
		r.text.WriteString(line + "\n")
	}
	err = r.cmd.Wait()
	return r.text.String(), err
}

func (r *run) nothingLeft(t *testing.T) {
	t.Helper()
	found, err := kubelet.Leftovers(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("left behind: %s", f)
	}
}

// standalone is the process that runs the others.
func (r *run) standalone(t *testing.T) int {
	t.Helper()
	found, err := kubelet.Leftovers(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if m := regexp.MustCompile(`^process (\d+): \S+/holdfast-standalone up `).FindStringSubmatch(f); m != nil {
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no standalone runs: %v", found)
	return 0
}

// TestDemoUnderRaceDetector runs the whole story with commands that report data
// races.
func TestDemoUnderRaceDetector(t *testing.T) {
	demo, bin := buildRace(t)
	reports := t.TempDir()
	r := start(t, []string{"GORACE=log_path=" + filepath.Join(reports, "race")}, demo, "--bin", bin)
	out, err := r.end()
	if err != nil {
		t.Errorf("the demo failed: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	if last := lines[len(lines)-1]; err == nil && !regexp.MustCompile(`^demo: PASS in \d+ s$`).MatchString(last) {
		t.Errorf("the last line is %q", last)
	}
	if err == nil && !regexp.MustCompile(`n3 +\[#+\.+\] +\d+%.*/s, .* left`).MatchString(out) {
		t.Error("the demo shows no progress of a resync")
	}
	r.nothingLeft(t)
	files, err := filepath.Glob(filepath.Join(reports, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("data race:\n%s", b)
	}
}

// TestInterrupted: a Ctrl-C, or what ends a session, at several moments.
func TestInterrupted(t *testing.T) {
	demo, bin := build(t)
	tests := []struct {
		name   string
		at     string // a line of the output
		signal os.Signal
	}{
		{"while it starts", "start store, controller and nodes", os.Interrupt},
		{"while a node is dead and a writer writes", "is Outdated, the volume degraded", os.Interrupt},
		{"while a replica is resynced", "[##", syscall.SIGTERM},
		{"while the volume is moved", "NodeStage and NodePublish on n2", os.Interrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, nil, demo, "--bin", bin)
			r.until(t, tt.at)
			if err := r.cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			out, err := r.end()
			if err == nil || strings.Contains(out, "PASS") || !strings.Contains(out, "interrupted") {
				t.Errorf("an interrupted demo ended with %v:\n%s", err, out)
			}
			r.nothingLeft(t)
		})
	}
}

// TestStandaloneDiesUnderTheDemo: a failure half way is reported as one, and
// cleared away.
func TestStandaloneDiesUnderTheDemo(t *testing.T) {
	demo, bin := build(t)
	r := start(t, nil, demo, "--bin", bin)
	r.until(t, "a writer goes on")
	if err := syscall.Kill(r.standalone(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out, err := r.end()
	if err == nil || strings.Contains(out, "PASS") {
		t.Errorf("the demo ended with %v:\n%s", err, out)
	}
	r.nothingLeft(t)
}

// TestKeep: it says how to talk to what it leaves, and how to end it; both are
// done to the letter.
func TestKeep(t *testing.T) {
	demo, bin := build(t)
	r := start(t, nil, demo, "--bin", bin, "--keep")
	out, err := r.end()
	if err != nil || !strings.Contains(out, "demo: PASS in ") {
		t.Fatalf("the demo failed: %v\n%s", err, out)
	}
	_, advice, _ := strings.Cut(out, "It is still running.")
	var commands []string
	for line := range strings.Lines(advice) {
		for _, word := range []string{" status --dir ", " kill n3 ", " start n3 ", "; rm -rf "} {
			if strings.Contains(line, word) {
				commands = append(commands, strings.TrimSpace(line))
			}
		}
	}
	if len(commands) != 4 {
		t.Fatalf("found %d commands in:\n%s", len(commands), advice)
	}
	for _, c := range commands {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		if out, err := exec.CommandContext(ctx, "bash", "-c", c).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c, err, out)
		}
		cancel()
	}
	r.nothingLeft(t)
}
