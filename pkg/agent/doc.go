// Package agent asks a node's agent over gRPC to make, open (which fences),
// grow, list and remove replicas. The controller and other nodes' mirrors use
// it: Clients has one connection per address. The node's side is package
// service below; this one links nothing of the data path.
//
// Errors keep their meaning over the wire (package rpcerr). Every call has a
// deadline: the caller's, or ten seconds; a peer that hangs ends in
// ErrUnavailable. Clients is safe for concurrent use.
package agent
