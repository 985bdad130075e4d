// Package standalone runs a whole Holdfast on one machine without Kubernetes: an
// embedded store, the controller and some nodes, each a process of its own with
// a log and a pid file. It is for demos, crash tests, csi-sanity and machines
// without a cluster; it is not a simulation: a node that is away was killed.
//
// What a directory holds:
//
//	DIR/standalone.json   ports and names, kept so that a restart keeps addresses
//	DIR/ctl.sock          control socket of the running supervisor
//	DIR/store/            process "store":      data/, log, pid
//	DIR/controller/       process "controller": csi.sock, log, pid
//	DIR/n1/, n2/, ...     process per node:     csi.sock, state/, pool/, log, pid
//
// Concurrency: Supervisor.mu guards the table of processes. One goroutine, locked
// to its thread, starts all children: the kernel ends them with that thread, so
// that nothing outlives a supervisor that was killed.
package standalone
