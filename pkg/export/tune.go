package export

import (
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// schedulerSlots is what TuneRuntime gives the scheduler beyond the number of
// processors.
const schedulerSlots = 14

// TuneRuntime sets up the Go runtime of a process that serves exports; a main
// calls it once, first of all.
//
// A goroutine that blocks in a system call keeps its scheduler slot (P) until
// the runtime's monitor takes it away, which it does at once only when nothing
// else is free to run, and else after 10 ms. With as many slots as processors,
// goroutines that became ready waited for blocked readers: up to 10 ms each.
// With some slots to spare they start at once. More slots cost a little memory
// and nothing else, as the kernel schedules the threads anyway.
//
// It also asks the kernel not to make this process wait for I/O of devices that
// it serves itself, when it allocates memory (PR_SET_IO_FLUSHER, which needs
// CAP_SYS_RESOURCE). The error, if any, says that this was not granted; all
// else has been done.
func TuneRuntime() error {
	runtime.GOMAXPROCS(runtime.NumCPU() + schedulerSlots)
	if f := ioFlusher(); f.ok {
		return nil
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w", errno)
	}
	return nil
}

// ioFlusher says whether this process has the flag.
func ioFlusher() finding {
	on, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	switch {
	case err != nil:
		return finding{false, "no permission (CAP_SYS_RESOURCE): under extreme memory pressure, writeback to an export may wait for itself"}
	case on == 0:
		return finding{false, "not asked for in this process"}
	}
	return finding{true, "set for this process"}
}
