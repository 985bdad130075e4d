// Package pace decides, for one node, which of its resyncs may copy next, and how
// fast all of them together: few volumes at once, those with the fewest in-sync
// replicas first; no faster than the administrator allows; and no faster than the
// applications of this node bear. It copies nothing itself: a mirror asks for a
// turn before each step, and says when the step is over.
//
// What must be prevented: a resync that makes an application wait. How long an
// application's requests take without resyncs can't be known from before, for
// applications change. So while there is one, copying pauses for some
// milliseconds from time to time, and what was asked of the volumes then is
// compared with what was asked while copying went on. If copying makes requests
// slower by a quarter, it slows down, and if not, it goes faster, until it does.
// Requests are compared by kind, for a flush takes longer than a read whatever
// copies. While nobody uses the volumes there are no pauses.
//
// The opposite must be prevented, too: a resync that never gets on, for until it
// has the volume lacks a replica. So there is a least rate.
//
// What it can't see: volumes that the kernel serves alone (one local replica), and
// applications on the node that is copied to. For those there is the fixed limit.
//
// plan and rate are pure: time and what was measured are arguments. Scheduler is
// the shell around them. Concurrency: Scheduler.mu guards both, and is never held
// while anything waits. A Meter's counters are atomic: the data path costs one
// atomic load while there is no resync.
package pace
