// Package host does to the machine what CSI asks of it: it makes, checks, grows
// and mounts filesystems, binds them (or a bare device node) to a target path,
// and tells what is mounted where and how full it is.
//
// It is not a place for decisions. Whether a device may be formatted, what may
// be unmounted and which error a caller sees is decided in package csi/node;
// here each method does one thing, and repeats of it are harmless.
//
// What must be prevented:
//
//   - A call that never returns. Every external command and every system call
//     that can wait for a device runs beside the caller, who leaves when its
//     context ends. What can't be killed (a process in uninterruptible sleep)
//     is left behind; callers of Usage and Alive for the same path share one
//     such call.
//   - Looking at a mount point through itself. The root of a filesystem whose
//     device died answers EIO to stat, so Inspect resolves the parent and then
//     reads /proc/self/mountinfo.
//   - Filesystems that another node can't mount. The tools of the image are
//     often newer than the kernel of the node, so mkfs gets its features named:
//     what Linux 5.15 can mount, the oldest kernel supported (see format.go).
//
// All methods of Host are safe for concurrent use. Two calls that change the
// same path are ordered by the caller.
package host
