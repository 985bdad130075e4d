// Package mirror is the shell around package core: it serves one volume as a
// block.Device, fans its writes out to the replicas, and carries out what the
// state machine decides. It imports neither Kubernetes nor CSI, and serves I/O
// while the store is down, as long as no replica has to be given up.
//
// Concurrency. Mirror.mu guards the machine and is held only for one event; the
// actions are carried out after it is released, by whichever goroutine brought
// the event: a local write runs on the thread that read the request, but never
// on one that brings answers or tells the time (Mirror.run). Actions of
// two events may therefore run in either order; the machine is built for that
// (answers carry the leg's session, and what was dropped is ignored). No lock
// is held across I/O. Every goroutine belongs to Mirror.tasks and ends
// with Mirror.ctx.
//
// Memory. A request's buffer belongs to the mirror until every replica that it
// was sent to has let go of it, also replicas that were given up meanwhile: a
// late local write must not read from a buffer that serves another request.
package mirror
