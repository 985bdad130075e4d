package pool

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountedAt returns the device ("major:minor") of the topmost file system that
// is mounted at a path.
func mountedAt(path string) (device string, ok bool, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	device, ok = topmost(string(data), path)
	return device, ok, nil
}

// topmost looks a mount point up in the text of mountinfo. It skips lines that
// it does not understand.
func topmost(mountinfo, path string) (device string, ok bool) {
	for line := range strings.Lines(mountinfo) {
		// proc(5): id, parent, major:minor, root, mount point, ... One blank
		// separates them; other white space is part of a path.
		f := strings.Split(line, " ")
		if len(f) > 4 && unescapeMount(f[4]) == path {
			device, ok = f[2], true // later lines lie above earlier ones
		}
	}
	return device, ok
}

// unescapeMount undoes the kernel's octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func deviceNumber(dev *os.File) (string, error) {
	st, err := inode(dev)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}
