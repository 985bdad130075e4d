package volume

// RegionBytes is what one bit of a replica's maps stands for: a region.
const RegionBytes = 64 << 10

// When replicas are compared, each HashUnit bytes have a hash of HashBytes.
const (
	HashUnit  = 4096
	HashBytes = 16
)

// Progress is how far the resync of a replica has come.
type Progress struct {
	// Below: what lies before this byte, a multiple of RegionBytes, is equal and
	// durable on the replica, but for changes of the present generation of intent bits.
	Below int64
	// Whole: what the replica missed is not known, so everything that is allocated may
	// differ.
	Whole bool
}

// Absent is a replica that is not in sync, by the name that others have for it.
type Absent struct {
	Name string
	Progress
}

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
