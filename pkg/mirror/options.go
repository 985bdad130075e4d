package mirror

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pace"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Volumes is what a mirror needs of the store: reading and compare-and-swap of
// its own volume. store.Objects has it.
type Volumes interface {
	Get(ctx context.Context, id volume.ID) (volume.Volume, error)
	Update(ctx context.Context, v volume.Volume) (volume.Volume, error)
}

// Leg is an opened session on one replica.
type Leg interface {
	block.Device
	// Grow makes the replica at least size bytes, under this session.
	Grow(ctx context.Context, size int64) error
	// Incarnation names the time through which the replica has forgotten nothing.
	Incarnation() volume.Incarnation
	Tracker
}

// Tracker is what a replica knows of where replicas may differ, asked and changed
// under an open session: one that is over refuses it. replica.Session has it.
type Tracker interface {
	// Regions reads a map, in regions of volume.RegionBytes. A change that was
	// answered before is in it.
	Regions(ctx context.Context, kind volume.MapKind, about string) (*bitmap.Set, error)
	// Rotate begins a generation of intent bits, with a higher number than any
	// before in the session: those of changes that are submitted after it returns.
	Rotate(ctx context.Context, generation uint64) error
	// DropPrevious clears the bits of generations before this one, which must be the
	// present one, after it has added them, durably, to what each of the replicas
	// of away missed, without what their resyncs have copied; it forgets what others
	// missed.
	DropPrevious(ctx context.Context, generation uint64, away []volume.Absent) error
	// DropCopied is for a replica that is resynced: it clears its bits of generations
	// before this one, which must be the present one, as far as it was copied to.
	DropCopied(ctx context.Context, generation uint64, p volume.Progress) error
	// Hashes returns volume.HashBytes for each volume.HashUnit from off on.
	Hashes(ctx context.Context, off, n int64) ([]byte, error)
}

// OpenRequest names a session to open.
type OpenRequest struct {
	Volume  volume.ID
	UID     volume.UID
	Replica volume.Replica
	Epoch   volume.Epoch
	Session volume.Session
	Holder  volume.NodeID
	Nonce   string // of the holder's claim
	Size    int64  // the replica is grown to it if it is smaller
	Direct  bool
	// OnFail is called at most once, from any goroutine, when the session broke
	// or was ended by the replica.
	OnFail func(error)
}

// Replicas opens sessions on replicas, local or remote. Open persists the epoch
// and session at the replica before it returns.
type Replicas interface {
	Open(ctx context.Context, r OpenRequest) (Leg, error)
}

// corrections is how many regions of a volume are made equal at once after an unclean close.
const corrections = 8

// readLease is how long a replica's answer allows its holder reads from another one;
// a takeover that does not reach every replica waits a quarter longer. All nodes must
// have the same, so it is no option.
const readLease = 2 * time.Second

// Options for Open.
type Options struct {
	Volume   volume.ID
	Node     volume.NodeID // this node: the holder to be
	Volumes  Volumes
	Replicas Replicas
	Logger   *slog.Logger
	// MayTake is asked, with the very version that the epoch is then taken on,
	// whether the volume's present holder may be overtaken.
	MayTake func(volume.Volume) error
	// Repair: nobody will use the volume; it is opened to bring its replicas in
	// sync, and gives way to whoever wants to use it.
	Repair bool
	// Patience: a replica that answers nothing for this long is given up;
	// default 8 s. A single request may take eight times that.
	Patience time.Duration
	// Rejoin: an InSync replica whose session was lost is waited for this long;
	// acknowledgements wait with it, and reads when their lease is over. 0 means not at
	// all.
	Rejoin time.Duration
	// OpenTimeout bounds the opening of one replica; default 5 s.
	OpenTimeout time.Duration
	// Tick is how often time is told to the machine; default 500 ms.
	Tick time.Duration
	// Reopen is the first pause between attempts to reach an Outdated replica;
	// default 1 s.
	Reopen time.Duration
	// Settle is the pause between attempts to clear intent bits; default 15 s.
	Settle time.Duration
	// CopyBytes is one step of a resync; default 1 MiB, the most that one
	// request may carry.
	CopyBytes int64
	// Pace gives the resyncs of a node their turns; default: one for this mirror alone.
	Pace *pace.Scheduler
	// OnResize is called when the volume serves more bytes than before.
	OnResize func(size int64)
}

func (o *Options) setDefaults() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Patience, 8*time.Second)
	def(&o.OpenTimeout, 5*time.Second)
	def(&o.Tick, 500*time.Millisecond)
	def(&o.Reopen, time.Second)
	def(&o.Settle, 15*time.Second)
	if o.Pace == nil {
		o.Pace = pace.New(pace.Options{})
	}
	if o.CopyBytes == 0 {
		o.CopyBytes = block.MaxIOBytes
	}
	switch {
	case o.Volumes == nil, o.Replicas == nil, o.Logger == nil, o.MayTake == nil:
		return fmt.Errorf("mirror options: Volumes, Replicas, Logger and MayTake are required: %w", volume.ErrInvalid)
	case o.CopyBytes < 0 || o.CopyBytes > block.MaxIOBytes:
		return volume.Invalid("CopyBytes", fmt.Sprint(o.CopyBytes), fmt.Sprintf("1 to %d", block.MaxIOBytes))
	}
	return nil
}
