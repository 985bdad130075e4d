package volume

import (
	"slices"
	"strings"
	"time"
)

// ReplicaState is what the store says about one replica's content.
type ReplicaState string

const (
	// InSync: has every acknowledged write.
	InSync ReplicaState = "InSync"
	// Outdated: misses acknowledged writes; never read, never promoted by itself.
	Outdated ReplicaState = "Outdated"
	// Rebuilding: is being filled by the mirror; still never read.
	Rebuilding ReplicaState = "Rebuilding"
	// Failed: met a disk error; never trusted again.
	Failed ReplicaState = "Failed"
)

// CacheMode says how replicas reach their disk.
type CacheMode string

const (
	// CacheWriteback: through the page cache; volatile until flushed, as on any
	// disk with a write cache.
	CacheWriteback CacheMode = "writeback"
	// CacheNone: O_DIRECT on the replica's image.
	CacheNone CacheMode = "none"
)

// Locality says from where a volume may be used.
type Locality string

const (
	// LocalityPreferred: from any node; a node with a replica is quicker.
	LocalityPreferred Locality = "preferred"
	// LocalityStrict: only from the nodes of its replicas.
	LocalityStrict Locality = "strict"
)

// Phase is the life of a Volume object.
type Phase string

const (
	// PhaseCreating: replicas are being made; CreateVolume has not answered.
	PhaseCreating Phase = "Creating"
	// PhaseReady: usable.
	PhaseReady Phase = "Ready"
	// PhaseDeleting: a tombstone; replicas still listed are to be removed.
	PhaseDeleting Phase = "Deleting"
)

// FormatState guards mkfs. It runs from FormatNever when the device reads blank,
// and from FormatBegun, also over what an unfinished mkfs left. The latter is
// sound because staging mounts a volume only after FormatDone is in the store: as
// long as it says FormatBegun nobody can have written to the filesystem. From
// FormatDone mkfs never runs, whatever the device holds.
type FormatState string

const (
	// FormatNever: no mkfs was ever begun on this volume.
	FormatNever FormatState = ""
	// FormatBegun: recorded before mkfs runs.
	FormatBegun FormatState = "formatting"
	// FormatDone: recorded after mkfs succeeded.
	FormatDone FormatState = "formatted"
)

// Volume is the store's object for one volume. Spec is written by the
// controller, Status by the mirror that holds the epoch, or by a controller
// while nobody holds it.
type Volume struct {
	ID  ID  `json:"id"`
	UID UID `json:"uid"`
	// Version is the store's, set by it on every read and write, opaque and not
	// part of the stored bytes. Invariant: 0 only on objects never stored.
	Version int64 `json:"-"`

	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
}

// Spec is what was asked for.
type Spec struct {
	Name string `json:"name"` // as the caller gave it to CreateVolume
	// SizeBytes is the size wanted; a multiple of SizeUnit. It only grows.
	SizeBytes int64  `json:"sizeBytes"`
	Params    Params `json:"params"`
	// Block: created for raw block use. FSType: else the filesystem; the default
	// one when the caller left it open, so that a volume is always one of the two.
	Block  bool   `json:"block,omitempty"`
	FSType string `json:"fsType,omitempty"`
	// Replicas is the number wanted now; 0 means as created (Params.Replicas).
	Replicas int `json:"replicas,omitempty"`
	// Places are where the replicas are wanted; empty means where they are.
	Places []Place `json:"places,omitempty"`
}

// Params are the StorageClass parameters, parsed (the table is in package csi).
type Params struct {
	Replicas     int       `json:"replicas"`         // 1 to 5
	Spread       string    `json:"spread,omitempty"` // topology key in which replicas must differ; "" means host
	Locality     Locality  `json:"locality"`
	MkfsOptions  string    `json:"mkfsOptions,omitempty"`
	CacheMode    CacheMode `json:"cacheMode"`
	PoolSelector string    `json:"pool,omitempty"` // name of the pool to use on each node; "" means any
}

// Status is what is true.
type Status struct {
	Phase Phase `json:"phase"`
	// SizeBytes is the size served. Invariant: every InSync replica is at least
	// this large, and SizeBytes <= Spec.SizeBytes.
	SizeBytes int64 `json:"sizeBytes"`
	// Epoch only grows. Invariant: whoever raised it held the volume from then
	// on, or is the controller that decided to delete it and so fenced the holder.
	Epoch Epoch `json:"epoch"`
	// Holder is the node whose mirror may serve this epoch; nil when released.
	Holder *Holder `json:"holder,omitempty"`
	// Clean: no write was left half-done by the last holder, so that all InSync
	// replicas are equal. False from the opening until a clean close.
	Clean    bool      `json:"clean"`
	Format   Format    `json:"format"`
	Replicas []Replica `json:"replicas"`
	// Retired: added to by who holds the epoch, taken from by the controller once
	// the files are gone.
	Retired []Retired `json:"retired,omitempty"`
	// Conditions by type: at most one of each.
	Conditions []Condition `json:"conditions,omitempty"`
}

// Format is the state of the volume's filesystem.
type Format struct {
	State  FormatState `json:"state,omitempty"`
	FSType string      `json:"fsType,omitempty"`
}

// Holder names who holds the volume's epoch.
type Holder struct {
	Node  NodeID    `json:"node"`
	Nonce string    `json:"nonce"` // random per opening; tells an own lost answer from another's success
	Since time.Time `json:"since"`
	// Repair: nobody uses the volume; it is open to bring its replicas in sync, and
	// whoever wants to use it may take it at once.
	Repair bool `json:"repair,omitempty"`
}

// Replica is one replica as the store knows it.
type Replica struct {
	Node   NodeID       `json:"node"`
	Pool   string       `json:"pool"`
	ID     string       `json:"id,omitempty"` // as Place.ID
	State  ReplicaState `json:"state"`
	Reason string       `json:"reason,omitempty"` // why it is not InSync
	Since  time.Time    `json:"since"`            // of the state
	// Change counts the volume's changes of membership: the one with which the
	// replica became, or ceased to be, InSync; 0 as created. A replica knows what
	// another one missed only if its own number is the smaller. Who changes State
	// to or from InSync sets Change to one more than the highest of all.
	Change uint64 `json:"change,omitempty"`
	// Incarnation is what the replica had when the volume was last opened with it
	// InSync, or when it became so.
	Incarnation Incarnation `json:"incarnation,omitempty"`
}

// ConditionType names a condition of a volume.
type ConditionType string

const (
	// ConditionDegraded: fewer replicas InSync than wanted.
	ConditionDegraded ConditionType = "Degraded"
	// ConditionWritesPaused: writes wait (a full pool).
	ConditionWritesPaused ConditionType = "WritesPaused"
	// ConditionFaulty: the volume can't be served, or must not be trusted.
	ConditionFaulty ConditionType = "Faulty"
	// ConditionDataLossAccepted: an administrator promoted a replica that was behind;
	// it stays, so that everybody sees it later.
	ConditionDataLossAccepted ConditionType = "DataLossAccepted"
)

// ReasonDataLoss begins the reason of a Faulty condition that says that data was
// lost. Opening the volume again leaves such a condition as it is: only a staging
// that finds the data takes it back.
const ReasonDataLoss = "DataLoss"

// ReasonStoreBehind is the reason of a Faulty condition: a replica has seen a
// higher epoch than the store knows, so the store has gone back in time. Until an
// administrator has set that right the volume is not opened: each attempt would
// raise the epoch, at last past the replica's, and serve what is out of date.
const ReasonStoreBehind = "StoreBehind"

// Condition is something a user should know about a volume.
type Condition struct {
	Type    ConditionType `json:"type"`
	Status  bool          `json:"status"`
	Reason  string        `json:"reason"`  // CamelCase, for programs
	Message string        `json:"message"` // a sentence, for people
	Since   time.Time     `json:"since"`
}

// SizeUnit is the granularity of volume sizes, in bytes: sizes are rounded up
// to it. MinSizeBytes is the smallest volume.
const (
	SizeUnit     int64 = 4096
	MinSizeBytes int64 = 1 << 20
)

// Clone makes a deep copy.
func (v Volume) Clone() Volume {
	v.Spec.Places = slices.Clone(v.Spec.Places)
	v.Status.Replicas = slices.Clone(v.Status.Replicas)
	v.Status.Retired = slices.Clone(v.Status.Retired)
	v.Status.Conditions = slices.Clone(v.Status.Conditions)
	if v.Status.Holder != nil {
		h := *v.Status.Holder
		v.Status.Holder = &h
	}
	return v
}

// ReplicaOn returns the index of node's replica in Status.Replicas, or -1.
func (v *Volume) ReplicaOn(node NodeID) int {
	return slices.IndexFunc(v.Status.Replicas, func(r Replica) bool { return r.Node == node })
}

// CountState counts the replicas in one state.
func (v *Volume) CountState(s ReplicaState) int {
	n := 0
	for _, r := range v.Status.Replicas {
		if r.State == s {
			n++
		}
	}
	return n
}

// LoopOnly says whether the volume is served by a loop device straight on its
// single replica's image: one replica, usable from its node alone. Such a
// volume can't pause a write when its pool is full, so its whole size is
// guaranteed by the pool.
func (v *Volume) LoopOnly() bool { return v.Spec.Params.LoopOnly() }

// LoopOnly: see Volume.LoopOnly.
func (p Params) LoopOnly() bool { return p.Replicas == 1 && p.Locality == LocalityStrict }

// SetCondition puts c in its type's place; Since is kept while Status, Reason
// and Message stay the same. It reports whether anything changed.
func (v *Volume) SetCondition(c Condition) bool {
	for i, old := range v.Status.Conditions {
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return false
		}
		if old.Status == c.Status {
			c.Since = old.Since
		}
		v.Status.Conditions[i] = c
		return true
	}
	v.Status.Conditions = append(v.Status.Conditions, c)
	return true
}

// Condition returns the condition of one type, and whether there is one.
func (v *Volume) Condition(t ConditionType) (Condition, bool) {
	i := slices.IndexFunc(v.Status.Conditions, func(c Condition) bool { return c.Type == t })
	if i < 0 {
		return Condition{}, false
	}
	return v.Status.Conditions[i], true
}

// LostData is the condition that says that data of the volume was lost, and
// whether it holds.
func (v *Volume) LostData() (Condition, bool) {
	c, ok := v.Condition(ConditionFaulty)
	return c, ok && c.Status && strings.HasPrefix(c.Reason, ReasonDataLoss)
}
