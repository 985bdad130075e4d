// Package left finds, and removes, what processes have left on a host below one
// directory: mounts, loop devices and processes. The kernel keeps the first two
// for good when their maker is killed, whichever namespace or user they belong
// to, so whoever makes them needs somebody to look.
//
// It knows things by their place: a mount point below the directory, a loop
// device whose backing file is there, a mount of such a device anywhere, a
// process with a given entry in its environment. It keeps no state.
package left

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Things are what was found.
type Things struct {
	Mounts []string // mount points, last mounted first
	Loops  []string // devices: /dev/loop3
}

// None says whether nothing was found.
func (t Things) None() bool { return len(t.Mounts)+len(t.Loops) == 0 }

// String lists them.
func (t Things) String() string {
	if t.None() {
		return "nothing"
	}
	return strings.Join(append(prefixed("mount ", t.Mounts), prefixed("loop device ", t.Loops)...), ", ")
}

func prefixed(prefix string, names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, prefix+n)
	}
	return out
}

// Below lists the mounts and loop devices below dir, an absolute path.
func Below(dir string) (Things, error) {
	if resolved, err := filepath.EvalSymlinks(dir); err == nil { // as the kernel shows paths
		dir = resolved
	}
	loops, err := loopsBelow(dir)
	if err != nil {
		return Things{}, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Things{}, err
	}
	return Things{Mounts: mountsBelow(string(table), dir, loops), Loops: loops}, nil
}

// mountsBelow reads a mount table (proc(5), mountinfo).
func mountsBelow(table, dir string, loops []string) []string {
	var out []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 5 || dash+2 >= len(fields) {
			continue
		}
		at, source := unescape(fields[4]), unescape(fields[dash+2])
		if strings.HasPrefix(at, dir+"/") || slices.Contains(loops, source) {
			out = append(out, at)
		}
	}
	slices.Reverse(out)
	return out
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func loopsBelow(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		if strings.HasPrefix(string(b), dir+"/") {
			out = append(out, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return out, nil
}

// How Remove goes about it.
const (
	pause      = 100 * time.Millisecond
	lazyAfter  = 3  // rounds of plain unmounting; then lazily
	roundLimit = 50 // a device or mount that is held for longer is given up
)

// Remove unmounts what is mounted below dir and detaches its loop devices. What
// it can't remove within some seconds is in the error. It removes no file.
func Remove(ctx context.Context, dir string) error {
	// A freed device may be one that another mount's image lies on: a few rounds
	// reach the bottom.
	for round := 1; ; round++ {
		things, err := Below(dir)
		if err != nil || things.None() {
			return err
		}
		if round > roundLimit {
			return fmt.Errorf("left behind in %s: %s", dir, things)
		}
		for _, dev := range things.Loops { // while their backing files have names
			detachLoop(dev)
		}
		for _, m := range things.Mounts { // the next round sees whether it worked
			if unix.Unmount(m, unix.UMOUNT_NOFOLLOW) != nil && round > lazyAfter {
				// A filesystem on a dead export can't be unmounted but lazily.
				_ = unix.Unmount(m, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("left behind in %s: %s: %w", dir, things, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// detachLoop asks the kernel to detach a device; it does once the last user is
// gone, and the next round sees whether that is so.
func detachLoop(dev string) {
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
}

// Process is a process that was found.
type Process struct {
	PID     int
	Command string
}

// String names it.
func (p Process) String() string { return fmt.Sprintf("process %d (%s)", p.PID, p.Command) }

// Processes lists the processes that were started with entry ("NAME=value") in
// their environment, without the calling one.
func Processes(entry string) ([]Process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, f := range files {
		environ, err := os.ReadFile(f)
		if err != nil {
			continue // ended meanwhile, or not ours to read
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil || pid == os.Getpid() || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(e []byte) bool { return string(e) == entry }) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err != nil {
			continue
		}
		out = append(out, Process{PID: pid, Command: strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))})
	}
	return out, nil
}
