// Package csi is Holdfast's face to a container orchestrator: the CSI v1.13
// Identity and Controller services, what they share with the Node service
// (package csi/node), and the server that offers them on a unix socket.
//
// It translates and checks; it decides nothing about placement, replication or
// devices. A method reads: validate, lock the volume (ABORTED if another call
// holds it), call the service behind it, build the reply. Calls that only read
// take no lock. Sentinel errors of package volume become gRPC codes in the
// server's interceptor, by the one table of package rpcerr.
//
// What must be prevented:
//
//   - A volume that isn't what was asked for. Capabilities, sizes and parameters
//     are checked completely before anything is created; what is unknown is
//     refused by name, never ignored.
//   - A path or identifier of a caller that reaches something else. Only the
//     form "hv-" and 32 hexadecimal digits ever becomes part of a path.
//   - A call that waits for ever: one without a deadline gets DefaultTimeout.
//
// Node is a package of its own so that the controller's binary links no data
// path.
package csi
