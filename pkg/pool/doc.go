// Package pool is a node's capacity: a directory on XFS with reflink or on
// btrfs, or an image file with XFS in it for hosts that have neither (Image).
// It owns the directory's identity, its lock, the small file operations that
// must survive a crash (FS, records), and the accounting of bytes. It knows
// nothing of what a replica is; package replica puts those below
// Pool.ReplicasDir.
//
// # What must be prevented
//
// Two processes using one pool. They would fence each other's writers without
// knowing of them. The directory is locked (flock) for as long as the Pool is
// open; the kernel drops the lock with the process, however that ends.
//
// A pool that is taken for another one, or for an empty one, because a disk was
// not mounted or a directory was mistyped. pool.json holds a random identity
// and the pool's name. A directory that has other things in it is refused, and
// one that holds replicas but no pool.json too.
//
// Metadata that is half old and half new. A record is written to a temporary
// file, fsynced, renamed over the old one, and the directory is fsynced: every
// crash leaves either the old record or the new one.
//
// A full file system that fails writes which nobody can pause. Volumes that a
// loop device serves straight from the image have their whole size guaranteed.
// Thin replicas are refused writes (volume.ErrNoSpace, which the mirror turns
// into waiting) before free space falls below the reserve and the bytes that
// guaranteed replicas may still allocate. See Pool.Admit.
//
// A host file system that fills up under an image-file pool. XFS would see I/O
// errors on blocks it owns (measured: "critical space allocation error" on the
// loop device, and the pool's XFS loses data it had accepted). The image is
// therefore allocated in full when it is made, and nothing may punch holes into
// it: it is mounted without discard, and the loop device's discard limit is set
// to zero, which also makes a host's fstrim timer harmless. Trim inside the pool
// gives space back to the pool, not to the host.
//
// # On disk, format version 1
//
//	<pool>/pool.json              record of kind "holdfast-pool"
//	<pool>/replicas/<UID>/        one replica; see package replica
//	<pool>/replicas/.tmp-*        being made or removed; swept on Open
//	<pool>/*.tmp, <pool>/.probe-* left by a crash; swept on Open
//
// A record is one JSON object of at most 64 KiB:
//
//	+--------+---------+---------------------------------------------------+
//	| field  | type    | meaning                                           |
//	+--------+---------+---------------------------------------------------+
//	| kind   | string  | what the record is: "holdfast-pool", ...          |
//	| format | integer | format version of the body: 1                     |
//	| crc32c | string  | 8 hex digits: CRC-32C of the body, as compact     |
//	|        |         | JSON (no white space between tokens)              |
//	| body   | object  | the record itself; unknown fields are refused     |
//	+--------+---------+---------------------------------------------------+
//
// Body of "holdfast-pool":
//
//	+--------+---------+---------------------------------------------------+
//	| uid    | string  | random UUID, made on first use                    |
//	| name   | string  | the pool's name on its node                       |
//	+--------+---------+---------------------------------------------------+
//
// # Concurrency
//
// A Pool and its methods are safe for concurrent use. Pool.mu guards the
// accounting and is held across statfs(2) and stat(2) of guaranteed images only,
// never across I/O that waits for a disk. Admit is one atomic operation unless
// space is short.
package pool
