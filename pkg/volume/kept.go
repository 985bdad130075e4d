package volume

// Kept is the copy of a volume's object that a node keeps beside its replica, so
// that a store that was lost can be made again from the replicas.
type Kept struct {
	// Version is the store's: of two copies from the same store the one with the
	// larger Version is the newer. Copies from different stores are told apart by
	// the epoch.
	Version int64  `json:"version"`
	Volume  Volume `json:"volume"`
}
