// Package service is a node's agent: it offers the node's replicas, behind a
// small interface, to the controller and to other nodes' mirrors over gRPC.
// Package agent above has its callers' side.
//
// Errors keep their meaning over the wire (package rpcerr). A call ends with its
// caller's deadline. Server is safe for concurrent use.
package service
