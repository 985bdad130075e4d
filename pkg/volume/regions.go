package volume

// RegionBytes is what one bit of a replica's maps stands for: a region.
const RegionBytes = 64 << 10

// When replicas are compared, each HashUnit bytes have a hash of HashBytes.
const (
	HashUnit  = 4096
	HashBytes = 16
)

// MapKind names a map of a replica's regions.
type MapKind string

// The maps.
const (
	// MapIntent: regions whose intent bit is set, which may be being written, or
	// may differ from other replicas.
	MapIntent MapKind = "intent"
	// MapMissed: those, and regions that an absent replica may have missed.
	MapMissed MapKind = "missed"
	// MapAllocated: regions that are not holes.
	MapAllocated MapKind = "allocated"
)
