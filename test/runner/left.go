package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/standalone/left"
)

// endPatience is how long processes may take to end by themselves.
const endPatience = 15 * time.Second

// leftBehind counts as one test: when all tests are done, no loop device, mount,
// process or file of theirs is there. What is there it removes.
func (t *tally) leftBehind(scratch string, patience time.Duration) {
	var found []string
	note := func(what string, err error) {
		if err != nil {
			found = append(found, what+": "+err.Error())
		}
	}
	found = append(found, endProcesses(scratch, patience)...)
	things, err := left.Below(scratch)
	note("look for mounts", err)
	if !things.None() {
		found = append(found, things.String())
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = left.Remove(ctx, scratch)
		note("remove mounts and loop devices", err)
	}
	entries, readErr := os.ReadDir(scratch)
	note("look for files", readErr)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "go-build") { // the go command's, if it was killed
			found = append(found, filepath.Join(scratch, e.Name()))
		}
	}
	if err == nil { // never delete through a mount
		note("remove files", os.RemoveAll(scratch))
	}
	if len(found) > 0 {
		t.fail("left behind by the tests", strings.Join(found, "\n    "))
		return
	}
	t.passed++
	fmt.Fprintln(t.out, "ok   nothing is left behind: no loop device, mount, process or file")
}

// endProcesses waits for the run's processes to end, then kills and names those
// that did not.
func endProcesses(scratch string, patience time.Duration) []string {
	deadline := time.Now().Add(patience)
	for {
		procs, err := left.Processes(markVariable + "=" + scratch)
		if err != nil {
			return []string{"look for processes: " + err.Error()}
		}
		if len(procs) == 0 {
			return nil
		}
		if time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		var found []string
		for _, p := range procs {
			found = append(found, p.String())
			_ = syscall.Kill(p.PID, syscall.SIGKILL) // it may have ended just now
		}
		time.Sleep(time.Second)
		return found
	}
}
