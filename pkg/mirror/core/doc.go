// Package core decides for one opening of one volume: which replica gets which
// write, when a write or flush may be acknowledged, when a replica is given up
// and what the store must know before the volume goes on. It is a pure state
// machine: an event method changes the state and appends actions; there is no
// clock, disk, socket, lock or goroutine in it. Package mirror is the shell
// that carries the actions out and feeds the answers back.
//
// What must be prevented, and by what:
//
//   - An acknowledged write is missing on a replica that may be used next. A
//     write is acknowledged only when every counted leg has answered it. A leg
//     that failed stays counted, and so holds every later acknowledgement back,
//     until a compare-and-swap that calls it Outdated has succeeded (legs.go).
//   - Two writers. Opening takes a new epoch by compare-and-swap, presents it to
//     every InSync replica, and records those not reached as Outdated before the
//     first I/O is served; each later swap is conditioned on that epoch (open.go).
//   - A swap whose answer was lost. It may still land, so nothing is concluded
//     from it: the same wants are swapped again until one succeeds (swap.go).
//   - Replicas that differ after a crash of the writer. After an unclean close
//     the regions with an intent bit on any reached InSync replica are compared
//     and corrected, each before the first read of it is answered (maps.go).
//   - A returning replica lacks what it missed, or keeps what others have not. What
//     is compared with it are the intent bits of all, and what a replica that was
//     InSync for all of its absence knows that it missed (resync.go).
//   - An intent bit is forgotten too early. It is cleared only when what it stands
//     for is answered by all, and flushed after that (cycle.go).
//   - Replicas that differ because two overlapping writes arrived in different
//     orders. A request that overlaps a change still unanswered by any leg waits
//     for it, in the order of arrival (io.go).
//   - A read returns bytes that a failover takes back, or that are stale. Reads
//     and changes that overlap wait for each other (io.go); and reads need a lease,
//     which the answers of the legs that have no part in them renew (lease.go).
//   - A resync overwrites newer data. A copy holds its range from before its
//     read until its write was answered; changes to that range wait, all others
//     pass and go to the resynced leg too (resync.go).
//   - A full pool becomes an I/O error. A leg that reports no space is asked
//     again until there is some; the write waits (io.go).
//
// Concurrency: a Machine belongs to one caller at a time; package mirror guards
// it with a mutex.
package core
