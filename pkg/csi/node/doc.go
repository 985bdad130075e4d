// Package node is the CSI Node service: it attaches volumes to this node, makes
// their filesystems, mounts them, and undoes all that.
//
// What is true is asked of the kernel (what is mounted where), of the store (was
// it ever formatted) and of the attacher (which device). The one thing kept
// here is a small record per staged volume, because neither knows what the
// caller asked for. It is written before the step that it tells of and removed
// after the step was undone, so a crash at any point leaves a record that covers
// all that was done, and every call may simply be repeated.
//
// What must be prevented, and how:
//
//   - mkfs over data. It runs only in the two cases of decideFormat: the store
//     says that no mkfs was ever begun and the device reads blank; or the store
//     says that one was begun and never finished, so that nobody can have mounted
//     the volume, because staging succeeds only after "formatted" is in the
//     store. Everything else that doesn't fit is an error that says what was
//     found. A formatted volume that reads blank is an alarm: DATA_LOSS, and a
//     condition in the store, written before the volume is released, which all
//     health calls show until a staging succeeds.
//   - A lock or an export that nobody will release. On a final code kubelet may
//     never call NodeUnstageVolume, so a staging that fails undoes all it did. If
//     that fails too, the code is UNAVAILABLE, which isn't final.
//   - A device taken from under a mounted filesystem. NodeUnstageVolume refuses
//     while any target is still bound, and while the kernel says that the
//     filesystem is mounted in another mount namespace.
//   - Data hidden or deleted by a mount or its removal. A target must be absent or
//     empty, and not mounted with something else; nothing is removed recursively.
//   - A path that leads elsewhere. Paths must be absolute and clean, must not be
//     links, and must lie in kubelet's directory if that is configured, also after
//     the links of their parents are followed.
//
// One lock per volume orders the calls that change something; calls that only
// read take none. A record is read and written only under that lock, or read as a
// whole file, which is replaced atomically.
package node
