// Package sanity runs csi-sanity, the conformance suite of the CSI project, in
// full against the real processes of a standalone: through the controller's and
// a node's own sockets, down to replicas on disk.
//
// The suite of Ginkgo may run once per process, so each of the configurations
// runs in a child: this test's own binary, told by an environment variable. Every
// spec of its report becomes a subtest. A spec that the suite skipped must be one
// for a capability that the driver doesn't claim; any other skip is a failure.
package sanity
