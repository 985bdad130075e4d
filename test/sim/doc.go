// Package sim runs Holdfast's replication in a simulated cluster: the production
// state machine of the mirror and the production rule for who may open a
// replica, in a single-threaded shell over simulated disks, network, store and
// clock. A seed is a whole history: the same seed gives the same run, byte for
// byte, and a failing one with a commit is the whole report.
//
// Every request of a client is written down with its virtual times, and each
// 4 KiB block is checked as a linearizable register (porcupine). After a power
// loss a block may hold an older value, but none older than what was
// acknowledged before an acknowledged flush began.
//
// Faults go only as far as the design promises to survive them: an InSync
// replica's disk fails for good only while another one is InSync.
//
// What it is not: the shell of package mirror (goroutines, deadlines) and the
// replica's file handling have tests of their own.
package sim
