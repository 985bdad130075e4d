// Package replica keeps a node's replicas: whole copies of volumes, each a plain
// raw image in a directory of its own in a pool. It creates, opens, grows and
// deletes them, fences old writers, and serves an open one as a block.Device
// (Session), in this process or through package nbd (Server.NBD).
//
// It decides nothing about the volume: which replicas are in sync, who may open
// them and when is the mirror's and the store's business.
//
// # What must be prevented
//
// Two writers. A replica persists the highest epoch and session that it has
// seen, and who presented it, before it answers an opening; it refuses lower
// ones with volume.ErrFenced. The file's own lock (flock) keeps a second process
// out, and an image that a loop device has bound is not opened at all.
//
// Bytes of a dead session land after its successor's first. Every I/O is counted
// in and out of its session. An opening ends the older session, which from then
// on lets no I/O in, and waits until the count is zero. All I/O is done by system
// calls that have returned by then, so nothing of the old session can reach the
// file later. If the wait is cut short by the caller's deadline, the opening
// fails, and the next one waits again.
//
// A lost write is acknowledged. When fsync fails, the kernel marks the pages
// clean all the same: a second fsync succeeds and means nothing. So a replica
// whose fsync or write failed is marked failed, in memory at once and durably
// before anyone hears of it, and never trusted again. The kernel reports a
// write-back error once for each open file description, therefore two threads
// must never share one in a sync: flushes take turns (flusher), a durable write
// has a description of its own (osImage), and so has background write-back. Only
// a full pool is no failure: the write is refused with volume.ErrNoSpace and may
// be repeated.
//
// A replica differs from others, or lacks what they have, and nobody knows where.
// See regions.go and docs/replication.md.
//
// A creation, growth or deletion is torn by a crash. A replica is made under a
// temporary name and renamed when it is complete and durable; it is renamed to
// one before it is removed; a growth is recorded before the image is changed.
// See lifecycle.go.
//
// A damaged or foreign replica is served. The record has a checksum and a format
// version, its UID must be the directory's name, and the image must be a regular
// file of exactly the recorded size. A replica that fails this is listed with
// the reason, opened by nobody, and touched by nobody but Delete.
//
// # On disk, format version 1
//
//	<pool>/replicas/<UID>/data.img   the volume's complete content, sparse
//	<pool>/replicas/<UID>/meta.json  record of kind "holdfast-replica" (package pool)
//	<pool>/replicas/<UID>/regions.map  write-intent bitmap, what others missed: regionfile.go
//	<pool>/replicas/.tmp-new-<UID>/  being made; swept
//	<pool>/replicas/.tmp-del-<UID>/  being removed; swept
//
//	+-------------+---------+----------------------------------------------+
//	| volume      | string  | the volume's ID                              |
//	| uid         | string  | the volume's UID; also the directory's name  |
//	| sizeBytes   | integer | size of data.img, a multiple of 4096         |
//	| growToBytes | integer | 0, or the size that a growth under way wants;|
//	|             |         | data.img has either size then                |
//	| guaranteed  | bool    | the pool keeps room for all of sizeBytes     |
//	| epoch       | integer | highest epoch seen; 0 before the first       |
//	| session     | integer | highest session seen within it               |
//	| holder      | string  | node that presented them                     |
//	| nonce       | string  | with which that took the epoch in the store  |
//	| failure     | string  | why it must not be trusted; "" when sound    |
//	+-------------+---------+----------------------------------------------+
//
// # Concurrency
//
// Server.mu guards the table of replicas, replica.mu what is known of one; both
// are held for moments, never across I/O, and taken in that order. An operation on a
// replica (open, grow, delete) owns its turn, a one-place channel, from start to
// end; within it, or from the data path when an I/O fails, whoever writes the
// record owns metaTurn. Order: turn, metaTurn, mu. The data path takes none of
// them: it counts itself in (one atomic add), does its system call, and counts
// itself out.
package replica
