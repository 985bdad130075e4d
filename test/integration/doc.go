// Package integration tests what only real processes can show: a node, the
// controller or the supervisor killed with SIGKILL or stopped with SIGSTOP, two
// nodes that want one volume, pools that fill up. Package kubelet starts the
// processes and makes the CSI calls, package workload knows which data must be
// there.
package integration
