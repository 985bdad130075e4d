package standalone

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// child starts a shell script as a child named "p".
func child(t *testing.T, script string) (dir string, p *process) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "p"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSpawner()
	var err error
	s.do(func() { p, err = startProcess(dir, "p", []string{"sh", "-c", script}, syscall.SIGKILL) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.signal(syscall.SIGKILL)
		<-p.exited
		close(s.work)
	})
	return dir, p
}

// awaitLog waits until the child has written a text.
func awaitLog(t *testing.T, dir, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if strings.Contains(tail(Log(dir, "p")), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log never had %q: %s", text, tail(Log(dir, "p")))
		}
	}
}

func TestStopInOrder(t *testing.T) {
	dir, p := child(t, `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	awaitLog(t, dir, "ready")
	if !p.running() {
		t.Fatal("a running process counts as ended")
	}
	if err := p.stop(time.Minute); err != nil {
		t.Errorf("stop: %v", err)
	}
	if p.running() || !strings.Contains(tail(Log(dir, "p")), "bye") {
		t.Errorf("it did not end in order: %s", tail(Log(dir, "p")))
	}
	if err := p.stop(time.Minute); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
}

func TestStopByForceSaysSo(t *testing.T) {
	dir, p := child(t, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	awaitLog(t, dir, "ready")
	err := p.stop(10 * time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v, want an error that says that it was killed", err)
	}
	if p.running() {
		t.Error("it still runs")
	}
}

func TestStartProcessThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "p"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := startProcess(dir, "p", []string{filepath.Join(dir, "nothing")}, syscall.SIGKILL); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(pidFile(dir, "p")); err == nil {
		t.Error("a pid file was written")
	}
}

// TestKillStale: only the very process that the pid file names is killed, never
// one that got its number later.
func TestKillStale(t *testing.T) {
	tests := []struct {
		name   string
		write  func(pid int, start string) string
		killed bool
	}{
		{"the same process", func(pid int, start string) string { return fmt.Sprintf("%d %s\n", pid, start) }, true},
		{"another start", func(pid int, _ string) string { return fmt.Sprintf("%d 1\n", pid) }, false},
		{"no start", func(pid int, _ string) string { return strconv.Itoa(pid) }, false},
		{"not a number", func(int, string) string { return "x 1" }, false},
		{"every process", func(_ int, start string) string { return "-1 " + start }, false},
		{"process one", func(_ int, start string) string { return "1 " + start }, false},
		{"empty", func(int, string) string { return "" }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("sleep", "600")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan struct{})
			go func() { _ = cmd.Wait(); close(exited) }()
			defer func() { _ = cmd.Process.Kill(); <-exited }()
			start, err := startTime(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "pid")
			if err := os.WriteFile(file, []byte(tt.write(cmd.Process.Pid, start)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := killStale(file); err != nil {
				t.Fatal(err)
			}
			now, err := startTime(cmd.Process.Pid)
			if alive := err == nil && now == start; alive == tt.killed {
				t.Errorf("alive is %v, want %v", alive, !tt.killed)
			}
			if _, err := os.Stat(file); err == nil {
				t.Error("the pid file is still there")
			}
		})
	}
	if err := killStale(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no pid file: %v", err)
	}
}

// TestStartTimeOfTheUnwaited: a process that has ended but was not waited for
// has no start time any more.
func TestStartTimeOfTheUnwaited(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := startTime(cmd.Process.Pid); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a process that has ended still has a start time")
		}
	}
}
