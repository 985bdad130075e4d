package standalone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Down removes what a killed standalone left: processes, mounts, loop devices
// and sockets. Data stays.
func Down(ctx context.Context, dir string) error {
	l, err := ReadLayout(dir)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(sweep(ctx, dir, l), lock.Close())
}

// sweep kills the processes that the pid files name, unmounts everything below
// dir, last mounted first, and detaches the loop devices whose file is there.
func sweep(ctx context.Context, dir string, l Layout) error {
	var errs []error
	for _, name := range l.Processes {
		errs = append(errs, killStale(pidFile(dir, name)))
	}
	// Unmounting frees loop devices, and a freed device may be one that another
	// mount's image lies on: a few rounds reach the bottom.
	for round := 0; ; round++ {
		mounts, err := mountsBelow(dir)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		loops, err := loopsBelow(dir)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if len(mounts) == 0 && len(loops) == 0 {
			return errors.Join(errs...)
		}
		if round == 50 || ctx.Err() != nil {
			return errors.Join(append(errs, fmt.Errorf("left behind: mounts %v, loop devices %v", mounts, loops))...)
		}
		for _, m := range mounts {
			// A filesystem on a dead export can't be unmounted but lazily.
			if unix.Unmount(m, 0) != nil && round > 2 {
				_ = unix.Unmount(m, unix.MNT_DETACH) // the next round sees whether it worked
			}
		}
		for _, dev := range loops {
			detachLoop(dev)
		}
		if round > 0 {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// mountsBelow lists the mount points below dir, last mounted first.
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	loops, err := loopsBelow(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		at := unescape(f[4])
		source := ""
		if i := slices.Index(f, "-"); i > 0 && i+2 < len(f) {
			source = f[i+2]
		}
		if strings.HasPrefix(at, dir+"/") || slices.Contains(loops, source) {
			out = append(out, at)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// unescape undoes the octal escapes of mountinfo (proc(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// loopsBelow lists the loop devices whose backing file lies below dir.
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

// detachLoop asks the kernel to detach a device; it does when the last user is
// gone.
func detachLoop(dev string) {
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0) // the next round sees whether it worked
}
