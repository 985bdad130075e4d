package export

import (
	"fmt"
	"os"
	"strings"
)

// mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	device string // major:minor
	point  string
	fstype string
	source string
}

func readMounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseMounts(string(b)), nil
}

// parseMounts skips lines that it does not understand.
func parseMounts(text string) []mount {
	var all []mount
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 2 {
			continue
		}
		all = append(all, mount{device: h[2], point: unescapeMount(h[4]), fstype: t[0], source: unescapeMount(t[1])})
	}
	return all
}

// unescapeMount undoes the kernel's octal escapes of blanks and backslashes.
var unescaper = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescapeMount(s string) string { return unescaper.Replace(s) }
