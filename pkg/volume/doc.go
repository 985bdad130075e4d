// Package volume holds Holdfast's words: identifiers, epochs, the Volume and
// Node objects that the store keeps, and the sentinel errors that every layer
// wraps and only the gRPC edge turns into codes.
//
// It is not a place for behaviour: nothing here does I/O, reads a clock or
// starts a goroutine. Values are plain data; a caller that shares one between
// goroutines copies it first (see Volume.Clone).
package volume
