// Package controller makes, deletes and grows volumes: it decides on placement
// (package placement), writes the store's objects and tells the nodes' agents
// to make and remove replicas. It has no data path, and keeps nothing in memory
// that it needs: every decision is a compare-and-swap in the store, so that any
// number of controllers may run, and one may die at any moment.
//
// # What must be prevented, and how
//
// A replica is removed whose volume is alive. Replicas are bound to a volume's
// UID, which is drawn anew for each creation. A replica is removed only on a
// tombstone of its UID; a tombstone is made only after the volume itself was
// swapped to PhaseDeleting; nothing leaves PhaseDeleting; and the swap fails if
// anybody took the volume since it was looked at. A replica whose UID the store
// doesn't know is reported and left alone.
//
// A replica is forgotten. The volume's object lists its replicas before the
// first of them is made, and the tombstone exists before the volume's object
// goes. A tombstone lists what is still to be removed, and outlives the last
// removal by a grace period, after which every node is asked once more: a
// CreateReplica that was still on its way then is found by its UID.
//
// Somebody writes to a deleted volume and believes it. The swap to
// PhaseDeleting takes a new epoch and clears the holder: the mirror that held
// the old epoch can't record anything any more, and its replicas end their
// sessions when they are removed. A volume with a live holder is not deleted.
//
// A volume is answered that isn't whole. CreateVolume answers only from
// PhaseReady, which is entered only when each agent has confirmed its replica.
//
// # The life of a volume
//
//	          create                 every replica made
//	(nothing) ------> PhaseCreating --------------------> PhaseReady
//	                        | a replica can't be made,         |
//	                        | or nobody repeats the call       | delete
//	                        v                                  v
//	                  PhaseDeleting <--------------------------+
//	                        | copied to a tombstone (own key), then removed
//	                        v
//	                    tombstone --> replicas removed, as nodes can be reached
//	                        | all removed, grace period, one look at all nodes
//	                        v
//	                    (nothing)
//
// The tombstone has a key of its own, derived from the UID, so that the name
// can be used again at once though a dead node still has a replica.
//
// A volume that stays in PhaseCreating for longer than CreateDeadline without a
// change is given up by the reconciler, for its controller died and nobody
// repeated the call. That is safe at any moment: no caller was ever told of the
// volume, and a caller that repeats just then loses a compare-and-swap and
// begins again with a new UID. A volume in PhaseReady whose creator never got
// the answer stays: only its owner may delete it.
//
// Two controllers that create different volumes at once may plan for the same
// room. The pool on the node checks each creation and has the last word; the
// loser places its volume anew.
//
// # Concurrency
//
// A Controller is safe for concurrent use. Calls for the same volume are not
// serialised here (package csi does that for its callers) and need not be. One
// goroutine, Run's, owns the reconciler's observations.
package controller
