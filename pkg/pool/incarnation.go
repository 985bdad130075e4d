package pool

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// bootIDFile is drawn by the kernel each time it starts: proc(5).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Incarnation names the time through which what was written to the pool and not
// flushed has been kept: in the page cache of one boot of the kernel, on one
// mounted device. Another process has the same. It is "" where the kernel does not
// tell.
//
// A file system that failed and was mounted again on the same device under the same
// number has the same, too; but its failure was answered to whoever wrote or
// flushed.
func (p *Pool) Incarnation() volume.Incarnation {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return ""
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(p.dir.Fd()), &st); err != nil {
		return ""
	}
	return volume.Incarnation(fmt.Sprintf("%s/%d:%d", strings.TrimSpace(string(boot)), unix.Major(st.Dev), unix.Minor(st.Dev)))
}
