// Package standalone tests the command holdfast-standalone from outside, with
// real processes: that it starts what it should, that what is killed is dead, and
// that neither an orderly end nor a kill of the supervisor leaves anything.
package standalone

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/standalone"
	"github.com/holdfast-csi/holdfast/pkg/standalone/left"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const patience = 2 * time.Minute

// place builds the commands and makes a directory, in which nothing may be left
// running at the end, whatever the test does.
func place(t *testing.T) (bin, dir string) {
	t.Helper()
	if missing := kubelet.Missing(); missing != "" {
		t.Skip(missing)
	}
	bin, err := kubelet.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp("", "hfu") // short, for the sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := left.Remove(ctx, parent); err != nil {
			t.Error(err)
		} else if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	return bin, filepath.Join(parent, "s")
}

func start(t *testing.T, o kubelet.Options) *kubelet.Standalone {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := kubelet.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Stop(ctx); err != nil && !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("stop: %v", err)
		}
		nothingRuns(t, o.Dir)
	})
	return s
}

// nothingRuns: no mount, loop device or process of the directory is there.
func nothingRuns(t *testing.T, dir string) {
	t.Helper()
	found, err := kubelet.Leftovers(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f != "directory "+dir { // its files are there for the next start
			t.Errorf("left behind: %s", f)
		}
	}
}

func command(t *testing.T, bin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "holdfast-standalone"), args...).CombinedOutput()
	return string(out), err
}

// pids tells which processes run, and as what.
func pids(t *testing.T, s *kubelet.Standalone) map[string]int {
	t.Helper()
	procs, err := s.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, p := range procs {
		if p.Running {
			out[p.Name] = p.PID
		}
	}
	return out
}

// alive says whether a process runs. One that has ended stays in the table until
// its parent has waited for it; some inits don't.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// TestUpKillStartDown goes through the life of a standalone.
func TestUpKillStartDown(t *testing.T) {
	bin, dir := place(t)
	s := start(t, kubelet.Options{Bin: bin, Dir: dir, Nodes: 2, PoolSize: "1Gi"})

	first := pids(t, s)
	if len(first) != 4 {
		t.Fatalf("running are %v, want store, controller, n1, n2", first)
	}
	for name, pid := range first {
		if !alive(pid) {
			t.Errorf("%s, process %d, does not run", name, pid)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name, "pid")); err != nil || len(bytes.Fields(b)) != 2 {
			t.Errorf("%s's pid file: %q, %v", name, b, err)
		}
	}

	t.Run("a second one is refused", func(t *testing.T) {
		if out, err := command(t, bin, "up", "--dir", dir, "--nodes", "2"); err == nil || !strings.Contains(out, "in use") {
			t.Errorf("got %v: %s", err, out)
		}
		if out, err := command(t, bin, "down", "--dir", dir); err == nil || !strings.Contains(out, "in use") {
			t.Errorf("down of a running one: got %v: %s", err, out)
		}
	})
	t.Run("a killed node is dead", func(t *testing.T) {
		if out, err := command(t, bin, "kill", "n2", "--dir", dir); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if alive(first["n2"]) {
			t.Errorf("process %d runs", first["n2"])
		}
		out, err := command(t, bin, "status", "--dir", dir)
		if err != nil || !strings.Contains(out, "ended: signal: killed") {
			t.Errorf("status: %v\n%s", err, out)
		}
	})
	t.Run("it starts again at the same addresses", func(t *testing.T) {
		before, err := standalone.ReadLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := command(t, bin, "start", "n2", "--dir", dir); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if now := pids(t, s); len(now) != 4 || now["n2"] == first["n2"] || now["n1"] != first["n1"] {
			t.Errorf("running are %v, were %v", now, first)
		}
		after, err := standalone.ReadLayout(dir)
		if err != nil || after.Nodes[1] != before.Nodes[1] {
			t.Errorf("addresses changed: %v, %v, %v", before.Nodes, after.Nodes, err)
		}
	})
	t.Run("store and controller come back too", func(t *testing.T) {
		for _, name := range []string{standalone.StoreName, standalone.ControllerName} {
			if err := s.Do(t.Context(), "kill", name); err != nil {
				t.Fatal(err)
			}
			if err := s.Do(t.Context(), "start", name); err != nil {
				t.Fatal(err)
			}
		}
		if now := pids(t, s); len(now) != 4 {
			t.Errorf("running are %v", now)
		}
	})
	t.Run("wrong names and states", func(t *testing.T) {
		for _, args := range [][]string{{"start", "n9"}, {"start", "n1"}, {"kill", "n9"}, {"stop", "../n1"}, {"kill"}, {"dance", "n1"}} {
			if out, err := command(t, bin, append(args, "--dir", dir)...); err == nil {
				t.Errorf("%v was done: %s", args, out)
			}
		}
	})

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, dir)
	if out, err := command(t, bin, "status", "--dir", dir); err == nil {
		t.Errorf("status of a stopped one: %s", out)
	}
}

// TestKilledSupervisor: its children don't outlive it by much, and with a volume
// staged at that moment `down` clears everything away; then it starts again.
func TestKilledSupervisor(t *testing.T) {
	bin, dir := place(t)
	o := kubelet.Options{Bin: bin, Dir: dir, Nodes: 2, PoolSize: "1Gi"}
	s := start(t, o)
	children := pids(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := s.Controller().Create(ctx, kubelet.Spec{Name: "held", SizeBytes: 320 << 20, FSType: "xfs", Params: map[string]string{"replicas": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Node("n1").Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := s.Crash(); err != nil { // kill -9, then `down`
		t.Fatal(err)
	}
	nothingRuns(t, dir)
	for name, pid := range children {
		if alive(pid) {
			t.Errorf("%s, process %d, still runs", name, pid)
		}
	}
	if out, err := command(t, bin, "down", "--dir", dir); err != nil {
		t.Errorf("a second down: %v: %s", err, out)
	}
	again := start(t, o)
	if now := pids(t, again); len(now) != 4 {
		t.Errorf("running are %v", now)
	}
	if _, err := again.Volume(ctx, v); err != nil {
		t.Errorf("the volume is gone: %v", err)
	}
}

// TestUpRefuses: bad input is named, and makes nothing.
func TestUpRefuses(t *testing.T) {
	bin, dir := place(t)
	tests := []struct {
		name string
		args []string
		says string
	}{
		{"no directory", []string{"up"}, "--dir"},
		{"a relative directory", []string{"up", "--dir", "here"}, "--dir"},
		{"no nodes", []string{"up", "--dir", dir, "--nodes", "0"}, "--nodes"},
		{"a pool of nothing", []string{"up", "--dir", dir, "--pool-size", "0"}, "size"},
		{"a pool of words", []string{"up", "--dir", dir, "--pool-size", "big"}, "size"},
		{"an unknown flag", []string{"up", "--dir", dir, "--speed", "9"}, "speed"},
		{"a wrong duration", []string{"up", "--dir", dir, "--lease", "soon"}, "lease"},
		{"a store for everybody", []string{"store", "--dir", dir, "--listen", "0.0.0.0:0"}, "loopback"},
		{"a store nowhere", []string{"store", "--listen", "127.0.0.1:0"}, "directory"},
		{"nothing to do", nil, "say what to do"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := command(t, bin, tt.args...)
			if err == nil || !strings.Contains(out, tt.says) {
				t.Errorf("got %v, want an error with %q:\n%s", err, tt.says, out)
			}
		})
	}
	nothingRuns(t, dir)
}

// TestFailedStart: when a process ends while starting, `up` says which, shows
// the end of its log, and stops the others.
func TestFailedStart(t *testing.T) {
	bin, dir := place(t)
	s := start(t, kubelet.Options{Bin: bin, Dir: dir, Nodes: 1, PoolSize: "1Gi"})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	layout, err := standalone.ReadLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", layout.Nodes[0].Agent)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	out, err := command(t, bin, "up", "--dir", dir, "--nodes", "1")
	if err == nil || !strings.Contains(out, "n1 ended while starting") || !strings.Contains(out, "address already in use") {
		t.Errorf("got %v:\n%s", err, out)
	}
	nothingRuns(t, dir)
}

// TestInterruptedStart: a Ctrl-C while it starts leaves nothing either.
func TestInterruptedStart(t *testing.T) {
	bin, dir := place(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "holdfast-standalone"), "up", "--dir", dir, "--nodes", "2", "--pool-size", "1Gi")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The pools' images are made early in the nodes' start.
	err := kubelet.Await(ctx, "a node to start", func(context.Context) error {
		_, err := os.Stat(filepath.Join(dir, "n1", "log"))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // with an error or not: it may have been ready already
	if strings.Contains(out.String(), "was killed") {
		t.Errorf("a process did not end in order:\n%s", out.String())
	}
	nothingRuns(t, dir)
}
