// Package block holds the one interface that all block devices of Holdfast
// speak: replica files, NBD clients and the mirror; decorators wrap it, and
// package blocktest has the conformance suite that every one of them passes.
//
// It is asynchronous, because most I/O has to wait for several parties: Submit
// hands over an IO, and its Done function is called exactly once, from any
// goroutine, possibly before Submit returns.
package block

import (
	"fmt"
	"unsafe"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Op is what an IO asks for; the words are the NBD protocol's.
type Op uint8

// The operations.
const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush       // makes all writes answered before it durable; Off and Len are 0
	OpTrim        // gives the space back; the range reads as zeroes afterwards, on every Device of ours
	OpWriteZeroes // as OpWrite of zeroes; may give space back unless NoHole
)

// String names the operation.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Changes says whether the operation changes the device's content.
func (o Op) Changes() bool { return o == OpWrite || o == OpTrim || o == OpWriteZeroes }

// MaxIOBytes is the largest read or write, in bytes. Trim and write-zeroes may
// be as long as the device.
const MaxIOBytes = 1 << 20

// IO is one request. The caller owns it and Data until it calls Submit, and
// again once Done has been called; in between both belong to the device, which
// must not change Data of a write.
type IO struct {
	Op     Op
	FUA    bool // OpWrite, OpTrim, OpWriteZeroes: durable before Done
	NoHole bool // OpWriteZeroes: keep the space allocated
	Off    int64
	Len    int64
	// Data has Len bytes for reads and writes, else nil. For devices that do
	// direct I/O it should be aligned in memory (see Alloc); those that get
	// other memory copy.
	Data []byte
	// Done reports the result: nil, or an error that wraps a sentinel of
	// package volume where one fits. It must not block, nor submit under a lock
	// that its caller could hold.
	Done func(io *IO, err error)
	// User is the caller's own; devices don't touch it.
	User any

	// Loop is set if Submit is called on its thread; the device may then do the
	// I/O there. DoneOn is set by a device that calls Done on that thread.
	Loop, DoneOn Loop
}

// Device is a fixed-size (but growable) block device. Offsets and lengths may
// be of any alignment; multiples of 4096 are quickest. Requests that overlap in
// time and range have no order; the caller orders them by waiting.
type Device interface {
	// Size is the size in bytes now.
	Size() int64
	// Submit starts io. Invalid requests (CheckRange) are answered with
	// ErrOutOfRange or ErrInvalid, requests after Close with ErrClosed.
	Submit(io *IO)
	// Close ends the device: requests under way are answered (with an error, if
	// need be), then Close returns. It does not flush. It may be called twice.
	Close() error
}

// CheckRange checks io against a device of size bytes.
func CheckRange(io *IO, size int64) error {
	switch io.Op {
	case OpFlush:
		return nil
	case OpRead, OpWrite:
		if io.Len != int64(len(io.Data)) {
			return fmt.Errorf("%s of %d bytes with a buffer of %d: %w", io.Op, io.Len, len(io.Data), volume.ErrInvalid)
		}
		if io.Len > MaxIOBytes {
			return fmt.Errorf("%s of %d bytes, more than %d: %w", io.Op, io.Len, MaxIOBytes, volume.ErrInvalid)
		}
	case OpTrim, OpWriteZeroes:
	default:
		return fmt.Errorf("%s: %w", io.Op, volume.ErrInvalid)
	}
	if io.Off < 0 || io.Len < 0 || io.Off > size || io.Len > size-io.Off {
		return fmt.Errorf("%s at %d+%d on a device of %d bytes: %w", io.Op, io.Off, io.Len, size, volume.ErrOutOfRange)
	}
	return nil
}

// Align is the alignment that direct I/O wants, in bytes, of memory, offset and
// length.
const Align = 4096

// Alloc makes a buffer of n bytes whose first byte is aligned to Align.
func Alloc(n int) []byte {
	b := make([]byte, n+Align-1)
	skip := 0
	if n > 0 {
		if r := int(uintptr(unsafe.Pointer(&b[0])) % Align); r != 0 {
			skip = Align - r
		}
	}
	return b[skip : skip+n : skip+n]
}

// Do submits a request and waits for it. It is for control paths and tests, not
// for the data path.
func Do(d Device, io *IO) error {
	ch := make(chan error, 1)
	io.Done = func(_ *IO, err error) { ch <- err }
	d.Submit(io)
	return <-ch
}

// ReadAt reads len(p) bytes at off.
func ReadAt(d Device, p []byte, off int64) error {
	return Do(d, &IO{Op: OpRead, Off: off, Len: int64(len(p)), Data: p})
}

// WriteAt writes p at off; volatile until Flush.
func WriteAt(d Device, p []byte, off int64) error {
	return Do(d, &IO{Op: OpWrite, Off: off, Len: int64(len(p)), Data: p})
}

// Flush makes all answered writes durable.
func Flush(d Device) error { return Do(d, &IO{Op: OpFlush}) }

// Extent is a piece of a device that is all data, or all hole.
type Extent struct {
	Len  int64
	Hole bool // reads as zeroes and takes no space
}
