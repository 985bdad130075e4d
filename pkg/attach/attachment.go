package attach

import "github.com/holdfast-csi/holdfast/pkg/volume"

// Attachment is a volume attached to this node.
type Attachment struct {
	Volume    volume.ID
	Device    string // the block device node on the host: "/dev/loop3"
	Kind      string // how it is exported: "fuse" or "loop"
	SizeBytes int64  // of the device
	Alive     bool   // false when the export no longer serves I/O and must be made anew
}

// Health is what a user should know about an attached volume, from this node's
// view and the store's.
type Health struct {
	Conditions []volume.Condition
}
