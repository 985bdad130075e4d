// Package etcd is the Store on etcd: a client of any etcd cluster (Connect) and
// a single-member server inside this process for machines without Kubernetes
// (StartEmbedded). Consensus, durability and the log are etcd's; this package
// writes none of them.
//
// Each object is one key, PREFIX + KIND + "/" + KEY, whose value is described
// in package record; an object's Version is its key's modification revision.
// Reads are linearizable. A change is one transaction that compares the
// revision, and it is sent once: a resent one could meet its own first copy and
// report a conflict with itself. So ErrConflict means "somebody else", and a
// request whose answer is lost is ErrUnavailable.
//
// A watch is a list, then a stream of changes from that revision on. When the
// stream ends for whatever reason (a broken connection, a compaction, a store
// that was restored to an earlier state), it starts over with a list, so that
// its reader never depends on the history.
//
// Concurrency: everything is safe for concurrent use. A watch is two
// goroutines, which end with their context or with Close; Close waits for them.
package etcd
