package pool

import (
	"bufio"
	"bytes"
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
	scan := bufio.NewScanner(bytes.NewReader(data))
	for scan.Scan() {
		// proc(5): id, parent, major:minor, root, mount point, ...
		f := strings.Fields(scan.Text())
		if len(f) > 4 && unescapeMount(f[4]) == path {
			device, ok = f[2], true // later lines lie above earlier ones
		}
	}
	return device, ok, scan.Err()
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
