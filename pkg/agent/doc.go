// Package agent is what a node offers to the controller and to other nodes'
// mirrors over gRPC: making, opening (which fences), growing, listing and
// removing its replicas. Server is the node's side over a small interface,
// Clients the callers' side with one connection per address.
//
// Errors keep their meaning over the wire (package rpcerr). Every call has a
// deadline: the caller's, or ten seconds; a peer that hangs ends in
// ErrUnavailable. Both sides are safe for concurrent use.
package agent
