// Package export makes block devices of the host out of volumes. There are two
// kinds:
//
//   - "fuse": a FUSE mount whose root is ONE regular file, under a loop device
//     with direct I/O and 4 KiB sectors. This process speaks the FUSE protocol
//     itself on /dev/fuse and hands every request to a block.Device. It works
//     on every kernel since 5.15 and needs no module but fuse and loop.
//   - "loop": a loop device straight on the image of a single local replica. It
//     needs no process: it goes on serving while this one restarts, and is
//     adopted again.
//
// The package knows nothing of replicas and mirrors, and never mounts, formats
// or unmounts a file system on the devices it makes.
//
// # What must be prevented
//
// A device that is in use loses its backing: Close opens the loop device
// exclusively before it detaches it, so a mounted one is refused and stays as
// it was; a loop device that somebody else still has open is left attached.
//
// A reply reaches another file than /dev/fuse, or a device writes into memory
// that was given back: descriptor and buffers of a FUSE connection are released
// only when no request is outstanding at the block.Device and no reader is
// left, however long that takes. A write that the kernel has is answered when it has
// ended, even if its ring has failed: whoever is answered lets another session write.
//
// A loop device is taken for ours that is not: they are recognised by device
// and inode number of what they stand on, never by name alone, because the
// kernel reuses the numbers as soon as one is free.
//
// A caller hangs with a dead or stuck device: everything that may wait for I/O
// of an export runs on a goroutine that the caller gives up on when its context
// ends.
//
// # Threads and memory
//
// Each FUSE export has one goroutine, locked to a thread, that reads requests with
// read(2) when an io_uring says that there are some, and sends replies in batches
// with it: under load, what a batch asks of the disk and the replies to others cost
// one system call. Requests are decoded in place
// and submitted to the block.Device by that thread, all of a round together (see
// block.Batcher). The ring is the device's, too: it is a block.Loop, on which the
// device may read and write files, and receive. What is complete when Submit
// returns, or is completed on the loop, is answered with the batch; what other
// goroutines complete is answered by them, with one write(2) each.
//
// Therefore a device for reads and writes should not wait inside Submit. Where
// there is no io_uring, or the device does wait, a few goroutines block in
// read(2) instead (FUSEOptions.Threads). Flush, trim and write-zeroes may always
// wait. See TuneRuntime for what all this asks of the Go scheduler.
//
// Each request under way has a buffer out of one mapping per export; at most
// maxRequests are under way and about maxInflightBytes of payload, and the
// pages go back to the kernel when the export has been idle for some seconds.
//
// Exports may be used from any goroutine. No lock is held across I/O, and no two
// at a time.
package export
