// Package sim runs Holdfast's replication in a simulated cluster: the production
// state machine of the mirror (core.Machine), the production replicas
// (replica.Server with its records, fence, sessions, maps, sweeps and write-back)
// and the production comparing and copying of a resync (mirror.Equalize), in one
// thread over simulated disks, network, store and clock. A seed is a whole history:
// the same seed gives the same run, byte for byte, and a failing one with a commit
// is the whole report.
//
// Every request of a client is written down with its virtual times, and each
// 4 KiB block is checked as a linearizable register (porcupine). After a power
// loss a block may hold an older value, or sectors of several, but none older than
// what was acknowledged before an acknowledged flush began, or as a durable write.
//
// Faults go only as far as the design promises to survive them: an InSync
// replica's disk fails for good only while another one is InSync.
//
// What it is not: a replica does one thing at a time, for nothing in it can wait;
// that its threads get along is shown by its own tests, with the race detector.
// The shell of package mirror (goroutines, deadlines), NBD and gRPC have tests of
// their own.
package sim
