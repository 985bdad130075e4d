package standalone

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one child.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended and was waited for
	err    error         // valid once exited is closed
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// startProcess starts a child with its log and pid file. death is the signal
// that it gets when the calling thread ends.
func startProcess(dir, name string, argv []string, death syscall.Signal) (*process, error) {
	log, err := os.OpenFile(Log(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it lives until it is stopped, longer than any call
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: a Ctrl-C at the terminal is the supervisor's to answer.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	start, err := startTime(cmd.Process.Pid)
	if err == nil {
		err = os.WriteFile(pidFile(dir, name), fmt.Appendf(nil, "%d %s\n", cmd.Process.Pid, start), 0o644)
	}
	if err != nil {
		killErr := cmd.Process.Kill()
		<-p.exited
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), killErr)
	}
	return p, nil
}

func pidFile(dir, name string) string { return filepath.Join(dir, name, "pid") }

// signal sends a signal; a process that has ended is fine.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// stop ends the process in order, or by force when the patience is over.
func (p *process) stop(patience time.Duration) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(patience):
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return fmt.Errorf("%s did not end within %v and was killed; see its log", p.name, patience)
}

// startTime is a process's start in clock ticks since boot, which with the pid
// names one process for good (proc(5), stat field 22). A process that has ended
// has none, also while nobody has waited for it: under some inits nobody does.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	rest := string(b)
	rest = rest[strings.LastIndexByte(rest, ')')+1:] // the command's name may have spaces and brackets
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if state := fields[0]; state == "Z" || state == "X" {
		return "", fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return fields[19], nil
}

// killStale kills the process that a pid file names, if it is still that one.
func killStale(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pidText, start, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil || pid <= 1 {
		return os.Remove(path)
	}
	if now, err := startTime(pid); err == nil && now == start {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if now, err := startTime(pid); err != nil || now != start {
				break
			}
		}
	}
	return os.Remove(path)
}

// spawner runs functions on one thread that lives as long as it: the kernel
// sends a child its death signal when the thread that started it ends.
type spawner struct{ work chan func() }

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { f(); close(done) }
	<-done
}
