package pool

import (
	"strings"
	"testing"
)

// FuzzTopmost: whatever stands around it, a mount point that is written as the
// kernel writes it is found, and of two at one place the later one.
func FuzzTopmost(f *testing.F) {
	const lines = "22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n23 22 0:21 / /proc rw - proc proc rw\n"
	for _, path := range []string{"/", "/srv/pool", "/with blank\tand\nbreak", `/back\slash`, `/a\040b`, "/é", "/form\ffeed\u00a0"} {
		f.Add(path, lines)
	}
	f.Add("/x", "")
	f.Add("/x", "1 2 3\n\x00\n - \n"+strings.Repeat("o", 70000))
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, path, around string) {
		topmost(around, path)
		if !strings.HasPrefix(path, "/") {
			return
		}
		mounted := around + "\n40 1 7:1 / " + escape.Replace(path) + " rw - xfs /dev/loop1 rw\n"
		if device, ok := topmost(mounted, path); !ok || device != "7:1" {
			t.Errorf("%q in %q: %s, %v", path, mounted, device, ok)
		}
		above := mounted + "41 40 7:2 / " + escape.Replace(path) + " rw - xfs /dev/loop2 rw\n"
		if device, ok := topmost(above, path); !ok || device != "7:2" {
			t.Errorf("%q in %q: %s, %v", path, above, device, ok)
		}
	})
}
