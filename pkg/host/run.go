package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// commandError is a command that ran and failed.
type commandError struct {
	Name   string
	Code   int // exit status; -1 when a signal ended it
	Output string
}

// Error implements error.
func (e *commandError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Name, e.Code, shorten(e.Output))
}

// killGrace is how long a killed command may take to vanish before it is left
// behind.
const killGrace = 2 * time.Second

// run executes a command without a shell and returns its standard output. A
// failure is a commandError with both outputs. When ctx ends, the command is
// killed and ctx's error returned; a process that survives the kill, because it
// sleeps in the kernel, is reaped whenever it wakes up.
func (h *Host) run(ctx context.Context, name string, args ...string) (string, error) {
	stdout, _, err := h.execute(ctx, name, args...)
	return stdout, err
}

// execute does what run says, and returns the standard error too.
func (h *Host) execute(ctx context.Context, name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = killGrace
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", "", fmt.Errorf("%s is not installed on this host: %w", name, volume.ErrUnsupported)
		}
		return "", "", fmt.Errorf("start %s: %w", name, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() // ends with the process, which is killed when ctx ends
	select {
	case err := <-done:
		return out.String(), errOut.String(), finish(cmd, err, errOut.String()+out.String())
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		h.log.Debug("command was killed", "command", name, "error", err)
	case <-time.After(killGrace):
		h.log.Warn("killed command is stuck in the kernel", "command", name, "pid", cmd.Process.Pid)
	}
	return "", "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), ctx.Err())
}

func finish(cmd *exec.Cmd, err error, output string) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return &commandError{Name: cmd.Args[0], Code: exit.ExitCode(), Output: output}
	}
	return fmt.Errorf("%s: %w", cmd.Args[0], err)
}

// maxOutput bounds how much of a command's output an error carries, in bytes.
const maxOutput = 1024

func shorten(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(s) > maxOutput {
		s = s[:maxOutput] + "..."
	}
	return s
}

// beside runs f, which may hang in the kernel, beside the caller, and leaves
// when ctx ends. f's goroutine ends with the system call.
func beside[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ch := make(chan result, 1)
	go func() {
		v, err := f()
		ch <- result{v, err}
	}()
	select {
	case r := <-ch:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// output returns whatever a command prints, even if it fails.
func (h *Host) output(ctx context.Context, name string, args ...string) string {
	stdout, stderr, err := h.execute(ctx, name, args...)
	if err != nil {
		h.log.Debug("command failed, its output is used all the same", "command", name, "error", err)
	}
	return stdout + stderr
}
