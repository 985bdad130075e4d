// Package workload is the application in the demo and in the tests: it writes
// data that can be told right from wrong later, on any node, with or without
// Holdfast.
//
// Files writes a set of files with known checksums, Pattern fills a piece of a
// block device, and Writer goes on writing small records with a flush now and
// then, and knows which of them must have survived whatever happens.
package workload
