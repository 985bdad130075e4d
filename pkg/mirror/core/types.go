package core

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Kind is what an Op does, as far as decisions need to know.
type Kind uint8

// The kinds of operations. Trim and write-zeroes are changes.
const (
	Read Kind = iota + 1
	Change
	Flush
	Probe     // the machine's own small read: is the leg still there?
	Confirm   // the machine's own empty request: is the leg's session still open? (lease.go)
	copyRange // the machine's own: one step of a resync
	correct   // the machine's own: makes a region equal on all readable legs
)

// String names the kind.
func (k Kind) String() string {
	return [...]string{"?", "read", "change", "flush", "probe", "confirm", "copy", "correct"}[k]
}

// Op is one operation under way. The caller allocates it, fills Kind, Off, Len
// and User, and gives it to Submit; it may be reused once a Reply action named
// it AND every Send action that named it was answered.
type Op struct {
	Kind     Kind
	Off, Len int64 // bytes; 0 for a flush
	User     any   // the caller's own

	seq     uint64 // order of submission
	targets mask   // legs it was sent to that have not been dropped since
	need    mask   // legs that were counted when it was sent
	done    mask   // legs that answered well
	retry   mask   // legs that had no space, to be sent to again
	starved mask   // legs that had no space and have not answered well since
	sent    int64  // tick of the last sending,
	// What the clock said at the first sending to present targets, and when it was
	// submitted. Another leg may yet answer the first one.
	asked, arrived int64
	replied        bool
	waiting        bool
	own            int // leg that an internal operation is about, else -1

	src        int            // copyRange, correct: the leg that is read,
	srcSession volume.Session // in this session
	again      bool           // correct: the source failed
}

// isCopy says whether the operation writes what it read elsewhere, and so holds
// its range.
func (k Kind) isCopy() bool { return k == copyRange || k == correct }

// overlaps says whether two byte ranges share a byte.
func (o *Op) overlaps(p *Op) bool { return o.Off < p.Off+p.Len && p.Off < o.Off+o.Len }

// mask is a set of legs, by index.
type mask uint8

func bit(leg int) mask { return 1 << leg }

// has says whether the leg is in the set.
func (m mask) has(leg int) bool { return m&bit(leg) != 0 }

// Result is how something asked of a leg or the store ended.
type Result uint8

// Results of Answer, Opened, Grown, Copied and SwapDone.
const (
	OK      Result = iota
	NoSpace        // the replica's pool is full: ask again
	Lost           // the leg's connection is gone, or it never came
	Fenced         // a newer epoch or session was seen: by the leg, or in the store
	Broken         // the replica's disk failed, or its content can't be trusted
	Unknown        // SwapDone: nobody can know whether the swap happened
	Refused        // the request itself was wrong
)

// String names the result.
func (r Result) String() string {
	return [...]string{"ok", "no-space", "lost", "fenced", "broken", "unknown", "refused"}[r]
}

// meaning says for people what the result of something sent to a replica means.
func (r Result) meaning() string {
	switch r {
	case Lost:
		return "its node can't be reached"
	case Fenced:
		return "its session was ended"
	case Broken:
		return "its disk failed"
	}
	return r.String()
}

// ActionKind says what the shell has to do.
type ActionKind uint8

// The actions.
const (
	// Open opens leg Leg as session Session; answer with Opened.
	Open ActionKind = iota + 1
	// Send submits Op to leg Leg; answer with Answer, whatever happens.
	Send
	// Reply answers Op to whoever submitted it, with Result.
	Reply
	// Drop closes leg Leg's session and forgets it. No answer.
	Drop
	// Swap applies Change by compare-and-swap under this epoch; answer with
	// SwapDone. At most one is under way.
	Swap
	// Copy makes Op's range on leg Leg equal to that on leg Src, if that still is
	// in SrcSession; answer with Copied.
	Copy
	// AskTurn asks whether the next copy to leg Leg may begin; answer with Turn when
	// it may. Nobody waits for that but the resync.
	AskTurn
	// ReadMap asks leg Leg's replica for the regions that Map names; answer with
	// MapRead.
	ReadMap
	// Rotate has leg Leg's replica begin a new generation of intent bits, number
	// Seq; answer with Rotated. DropPrevious has it add the generations before
	// number Seq, if that is its present one, to what each leg in Away missed, and
	// take from that what the leg's Progress says, durably, and then clear them; it
	// forgets what legs not in Away missed. DropCopied has the replica of a leg that
	// is resynced clear its own generations before number Seq, as far as Progress
	// says. Answer both with Dropped.
	Rotate
	DropPrevious
	DropCopied
	// Grow makes leg Leg's replica Size bytes; answer with Grown.
	Grow
	// Resized: the volume now serves Size bytes.
	Resized
	// GrowDone ends all Grow requests up to Size with Result OK, or with another
	// Result all of them.
	GrowDone
	// Serve: the opening succeeded; requests are served from now on.
	Serve
	// Stop: the machine serves nothing any more; Result and Reason say why. All
	// operations have been replied to.
	Stop
)

// Action is one thing for the shell to do, in the order given.
type Action struct {
	Kind       ActionKind
	Leg        int
	Session    volume.Session
	Src        int
	SrcSession volume.Session
	Op         *Op
	Result     Result
	Size       int64
	Reason     string
	Change     *Wants
	Seq        uint64          // ReadMap, Rotate, DropPrevious, DropCopied: number of the question
	Map        MapKind         // ReadMap
	About      int             // ReadMap: the leg that a resync is about, else -1
	Away       []Away          // DropPrevious: legs that are not InSync
	Progress   volume.Progress // DropCopied
}

// Away is a leg that is not InSync.
type Away struct {
	Leg      int
	Progress volume.Progress
}

// MapKind says which regions of a replica are asked for.
type MapKind uint8

// The kinds of maps.
const (
	// MapIntent: those whose intent bit is set.
	MapIntent MapKind = iota + 1
	// MapMissed: those whose intent bit is set, or that leg About missed.
	MapMissed
	// MapAllocated: those that are not holes.
	MapAllocated
)

// String names the kind.
func (k MapKind) String() string { return [...]string{"?", "intent", "missed", "allocated"}[k] }

// Wants is what one compare-and-swap writes into the volume's status: always
// the whole of what the machine wants, so that the last success settles all
// before it.
type Wants struct {
	// Take: a new epoch for this holder, and Clean=false. Only in the first.
	Take bool
	// States and Reasons by leg; nil with Take.
	States  []volume.ReplicaState
	Reasons []string
	Changes []uint64 // volume.Replica.Change
	// Incarnations by leg, of volume.Replica.
	Incarnations []volume.Incarnation
	Size         int64 // bytes served
	Paused       bool  // writes wait for space
	// Release: no holder any more; Clean says whether all InSync replicas are
	// known to be equal.
	Release, Clean bool
}

// Phase is the life of a Machine.
type Phase uint8

// The phases, in order.
const (
	Taking    Phase = iota // the swap that takes the epoch is under way
	Fencing                // InSync replicas are being opened with the new epoch
	Reading                // after an unclean close: their intent bits are being read
	Recording              // what was not reached is being recorded
	Serving
	Draining  // no new requests; waiting for those under way
	Flushing  // the last flush before a clean close
	Releasing // the swap that releases the volume is under way
	Stopped
)

// String names the phase.
func (p Phase) String() string {
	return [...]string{"taking", "fencing", "reading", "recording", "serving", "draining", "flushing", "releasing", "stopped"}[p]
}

// legPhase is the life of one leg.
type legPhase uint8

const (
	legDown    legPhase = iota // no session
	legOpening                 // Open was sent
	legUp                      // gets every change
)

func (p legPhase) String() string { return [...]string{"down", "opening", "up"}[p] }

// leg is the mirror's slot for one replica.
type leg struct {
	local   bool
	phase   legPhase
	session volume.Session // of the present or last opening; only grows

	// recorded is what the last successful swap (or the object read at Start)
	// says of the replica; want is what the next one should say.
	recorded, want volume.ReplicaState
	reason         string
	// kept is the incarnation that the last successful swap says, and incarnation
	// that of the session that is, or was last, up; "" is not known.
	kept, incarnation volume.Incarnation
	// rejoinBy is the tick until which an InSync leg whose session was lost may
	// come back as it was; 0 means that it is not waited for (rejoin.go).
	// Invariant: such a leg is counted, recorded and wanted InSync, and not up.
	rejoinBy int64
	// provenAt is the tick from which a leg that came back may be waited for again.
	provenAt int64
	// change counts the changes of membership: the one with which the replica
	// became, or ceased to be, InSync, or since which all that are InSync have noted
	// what it lacks. So a leg that is InSync knows all that another one lacks if its
	// number is the smaller. The store says so after the next swap.
	change uint64

	// broke: the session's connection broke before Opened came; why.
	broke string

	heard int64 // tick of the last answer
	// proven is what the clock said when the newest request was sent that the leg has
	// answered in this session: it was open then, or later.
	proven     int64
	opened     int64 // what the clock said when the session was asked for
	confirming bool  // a confirm is under way,
	confirmed  int64 // since this tick
	probing    bool
	probed     int64 // tick of the last probe
	reopenAt   int64 // tick of the next attempt to open it for a rebuild
	backoff    int64

	// Resync: delta is the regions that may differ, of which those below cursor
	// were copied since the leg came up; moved is how many bytes that were. mark is
	// set when the leg was counted: operations below it must be answered, then
	// its own flush, before the leg is promoted. step tells how far that is.
	delta  *bitmap.Set
	cursor int64
	moved  int64
	copier *Op
	mark   uint64
	step   resyncStep
	// turn is how many bytes the next copy may have, 0 before a turn was asked for,
	// and turnAsked until it comes.
	turn int64
}

type resyncStep uint8

const (
	stepNone resyncStep = iota
	stepWait            // until all dirty regions are corrected
	stepMaps            // the maps that tell the delta are being read
	stepCopy
	stepDrain
	stepFlush
	stepPromote
)

func (s resyncStep) String() string {
	return [...]string{"none", "wait", "maps", "copy", "drain", "flush", "promote"}[s]
}

// Config sets the machine's patience; ticks are whatever unit the shell's Tick
// uses.
type Config struct {
	Legs []LegConfig
	// Patience: a leg that has answered nothing for this long, although asked,
	// is given up. OpPatience: the same for one operation, although the leg
	// answers others (a disk that hangs).
	Patience, OpPatience int64
	// Rejoin is how long an InSync leg whose session was lost is waited for before
	// it is given up; 0: not at all.
	Rejoin int64
	// Lease is how long, by the clock, a leg's answer allows reads that the leg has
	// no part in (lease.go); all holders of the volume must have the same. 0: for
	// ever.
	Lease int64
	// Reopen is the first pause between attempts to open a replica that is to
	// be rebuilt; it doubles up to sixteen times that.
	Reopen int64
	// CopyBytes is the size of one step of a resync.
	CopyBytes int64
	// RegionBytes is what one bit of a map stands for.
	RegionBytes int64
	// Corrections is how many regions are corrected at once after an unclean close.
	Corrections int
	// Settle is the pause between attempts to clear intent bits.
	Settle int64
}

// LegConfig describes one replica.
type LegConfig struct {
	Local bool // served in this process: read from it first
}

// MaxLegs is how many replicas a volume may have.
const MaxLegs = 5

func (c Config) validate() error {
	if len(c.Legs) == 0 || len(c.Legs) > MaxLegs {
		return fmt.Errorf("%d legs: %w", len(c.Legs), volume.ErrInvalid)
	}
	if c.Patience <= 0 || c.OpPatience < c.Patience || c.Reopen <= 0 || c.CopyBytes <= 0 || c.Rejoin < 0 || c.Lease < 0 {
		return fmt.Errorf("patience %d, op patience %d, rejoin %d, lease %d, reopen %d, copy %d: %w", c.Patience, c.OpPatience, c.Rejoin, c.Lease, c.Reopen, c.CopyBytes, volume.ErrInvalid)
	}
	if c.RegionBytes <= 0 || c.Settle <= 0 || c.Corrections <= 0 {
		return fmt.Errorf("regions of %d bytes, settle %d, corrections %d: %w", c.RegionBytes, c.Settle, c.Corrections, volume.ErrInvalid)
	}
	return nil
}
