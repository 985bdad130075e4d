package export

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// TestServerExhausted has as many requests at the device as there are slots, and more
// waiting: those are read as soon as there is room, and all are answered.
func TestServerExhausted(t *testing.T) { engines(t, testServerExhausted) }

func testServerExhausted(t *testing.T, threads int) {
	const waiting = 20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mem := blocktest.NewMemory(1 << 20)
	mem.Hold(func(*block.IO) bool { return true })
	k := newKernel(t, mem, threads)
	for i := range uint64(maxRequests + waiting) {
		k.send(encode(opRead, i+1, ioArg(0, 4096)))
	}
	seen := map[uint64]bool{}
	answer := func() {
		unique, errno, _ := k.receive()
		if errno != 0 || seen[unique] {
			t.Errorf("request %d: %v, seen %t", unique, errno, seen[unique])
		}
		seen[unique] = true
	}
	for range waiting {
		if err := mem.WaitHeld(ctx, maxRequests); err != nil {
			t.Fatalf("after %d answers: %v", len(seen), err)
		}
		mem.Release(0)
		answer()
	}
	if err := mem.WaitHeld(ctx, maxRequests); err != nil {
		t.Fatal(err)
	}
	mem.Release(-1)
	for range maxRequests {
		answer()
	}
	mem.Hold(nil)
	if errno, _ := k.call(encode(opRead, 9999, ioArg(0, 4096))); errno != 0 {
		t.Errorf("a read afterwards: %v", errno)
	}
}

// TestServerMemoryExhausted is TestServerExhausted by the bytes under way.
func TestServerMemoryExhausted(t *testing.T) { engines(t, testServerMemoryExhausted) }

func testServerMemoryExhausted(t *testing.T, threads int) {
	const full = maxInflightBytes/maxPayloadBytes + 1
	const requests = full + 6
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mem := blocktest.NewMemory(maxPayloadBytes)
	mem.Hold(func(*block.IO) bool { return true })
	k := newKernel(t, mem, threads)
	for i := range uint64(requests) {
		k.send(encode(opRead, i+1, ioArg(0, maxPayloadBytes)))
	}
	for left := requests; left > 0; left-- {
		if err := mem.WaitHeld(ctx, min(left, full)); err != nil {
			t.Fatalf("with %d unanswered: %v", left, err)
		}
		mem.Release(0)
		if unique, errno, body := k.receive(); errno != 0 || len(body) != maxPayloadBytes {
			t.Errorf("request %d: %v with %d bytes", unique, errno, len(body))
		}
	}
}

// TestServerEndsWhileFull ends the connection when no slot is left, so that the
// reader is not reading: it must notice all the same, at the latest with the next
// slot.
func TestServerEndsWhileFull(t *testing.T) { engines(t, testServerEndsWhileFull) }

func testServerEndsWhileFull(t *testing.T, threads int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mem := blocktest.NewMemory(1 << 20)
	mem.Hold(func(*block.IO) bool { return true })
	k := newKernel(t, mem, threads)
	for i := range uint64(maxRequests) {
		k.send(encode(opRead, i+1, ioArg(0, 4096)))
	}
	if err := mem.WaitHeld(ctx, maxRequests); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(k.fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	mem.Release(0)
	<-k.srv.gone
	mem.Release(-1)
	k.hangUp()
}

// TestRingListensAgain ends the poll that tells of requests, as the kernel may at any
// time: there must be another.
func TestRingListensAgain(t *testing.T) {
	needsRing(t)
	k := newKernel(t, blocktest.NewMemory(1<<20), 0)
	for i := range uint64(5) {
		if errno, _ := k.call(encode(opRead, i+1, ioArg(0, 4096))); errno != 0 {
			t.Fatal(errno)
		}
		r := k.srv.ring.Load()
		ended := make(chan error, 1)
		r.loop.Post(func() { ended <- r.ring.prepareCancel(ringPoll, ringCancel) })
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// TestRingEndsWhileListening: with nothing under way, the end of the connection is
// what the poll tells of.
func TestRingEndsWhileListening(t *testing.T) {
	needsRing(t)
	k := newKernel(t, blocktest.NewMemory(1<<20), 0)
	if errno, _ := k.call(encode(opRead, 1, ioArg(0, 4096))); errno != 0 {
		t.Fatal(errno)
	}
	if err := unix.Shutdown(k.fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	select {
	case <-k.srv.gone:
	case <-time.After(time.Minute):
		t.Error("the reader does not notice")
	}
}
