// Package kubelet drives a real Holdfast from outside, for the demo and the
// tests: it starts a standalone (every node, the controller and the store a
// process of its own) and plays the sidecars and kubelet over the CSI sockets,
// with their deadlines and their directory layout.
//
// It is not a fake of Kubernetes: there is no scheduler and no API server. A
// call is made once, as kubelet makes it; Persist repeats one as kubelet does.
//
// Everything lies below one directory, so that what a failed run left behind can
// be told from everything else on the machine; see Leftovers.
//
// Concurrency: all methods may be called from several goroutines. Node.mu guards
// what a node has staged and published.
package kubelet
