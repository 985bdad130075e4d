package controller

import "github.com/holdfast-csi/holdfast/pkg/volume"

// CreateRequest asks for a volume. Sizes are in bytes.
type CreateRequest struct {
	Spec volume.Spec // Name, SizeBytes (already chosen between required and limit), Params, Block, FSType
	// LimitBytes: an existing volume of the same name may be at most this
	// large; 0 means no limit. RequiredBytes: at least this large.
	RequiredBytes, LimitBytes int64
	// Requisite: one replica at least, or with strict locality all of them, must
	// be in one of these topologies; empty means anywhere. Preferred: the order
	// in which to try; the first replica goes to the first that has room.
	Requisite, Preferred []map[string]string
}

// CapacityRequest asks what could be created. Topology nil means anywhere.
type CapacityRequest struct {
	Params   volume.Params
	Topology map[string]string
}

// Capacity answers a CapacityRequest, in bytes.
type Capacity struct {
	Available int64 // sum of what such volumes could still take
	Maximum   int64 // largest single volume
	Minimum   int64 // smallest single volume
}
