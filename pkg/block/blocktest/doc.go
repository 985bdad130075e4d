// Package blocktest tests implementations of block.Device, and is one.
//
// Run is the conformance suite that every device of Holdfast passes: replica
// files, NBD clients, the mirror, and the decorators between them. Memory is an
// in-memory device with injectable faults, for the tests of whatever sits on
// top of a device; it passes the suite itself.
//
// Memory may be used from any goroutine. Its hooks run under its lock and must
// not call it.
package blocktest
