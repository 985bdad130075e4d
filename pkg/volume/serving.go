package volume

// Serving is what a node tells of a volume that it holds: what the store is not
// bothered with, because it changes all the time.
type Serving struct {
	Volume ID
	UID    UID
	Epoch  Epoch
	// Repair: nobody uses the volume; it was opened to bring its replicas in sync.
	Repair bool
	// Dirty is how many regions are still to be compared after an unclean close.
	Dirty    int
	Replicas []ServedReplica
}

// ServedReplica is one replica as the mirror that holds its volume sees it.
type ServedReplica struct {
	Node NodeID
	// State is what the store is known to say.
	State  ReplicaState
	Reason string // why it is not InSync
	// Resyncing: what the replica lacks is being copied to it now. DoneBytes of
	// TotalBytes that it may lack are done, whether they had to be copied or not;
	// both are 0 while that is being found out.
	Resyncing             bool
	DoneBytes, TotalBytes int64
}
