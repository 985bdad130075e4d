package blocktest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestMemoryConforms(t *testing.T) {
	t.Run("synchronous", func(t *testing.T) {
		Run(t, func(*testing.T) block.Device { return NewMemory(8 << 20) }, Options{})
	})
	t.Run("reordering", func(t *testing.T) {
		Run(t, func(*testing.T) block.Device {
			m := NewMemory(5 << 20)
			m.Reorder(1)
			m.TrackDurable()
			return m
		}, Options{})
	})
}

func TestMemoryFail(t *testing.T) {
	m := NewMemory(1 << 20)
	m.Fail(func(io *block.IO) error {
		if io.Op == block.OpWrite {
			return volume.ErrNoSpace
		}
		return nil
	})
	if err := block.WriteAt(m, []byte("x"), 0); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("write: %v, want ErrNoSpace", err)
	}
	if err := block.Flush(m); err != nil {
		t.Errorf("flush: %v", err)
	}
	m.Fail(nil)
	if err := block.WriteAt(m, []byte("x"), 0); err != nil {
		t.Errorf("write without the fault: %v", err)
	}
	if m.Count(block.OpWrite) != 2 || m.Bytes()[0] != 'x' {
		t.Errorf("%d writes, content %q", m.Count(block.OpWrite), m.Bytes()[0])
	}
}

func TestMemoryHold(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := NewMemory(1 << 20)
	m.Hold(func(io *block.IO) bool { return io.Op == block.OpWrite })
	answers := make(chan string, 3)
	for _, s := range []string{"a", "b", "c"} {
		m.Submit(&block.IO{Op: block.OpWrite, Len: 1, Data: []byte(s), Done: func(_ *block.IO, err error) {
			if err != nil {
				s += ": " + err.Error()
			}
			answers <- s
		}})
	}
	if err := m.WaitHeld(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if m.Bytes()[0] != 0 {
		t.Error("a held write took effect")
	}
	m.Release(1)
	if got := <-answers; got != "b" {
		t.Errorf("released %q, want b", got)
	}
	m.Release(-1)
	if a, c := <-answers, <-answers; a != "a" || c != "c" {
		t.Errorf("released %q and %q, want a and c", a, c)
	}
	m.Submit(&block.IO{Op: block.OpWrite, Len: 1, Data: []byte("d"), Done: func(_ *block.IO, err error) { answers <- err.Error() }})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got != "memory device: closed" {
		t.Errorf("held at Close: %q", got)
	}
}

func TestMemoryCrash(t *testing.T) {
	m := NewMemory(64 << 10)
	m.TrackDurable()
	one, two := bytes.Repeat([]byte{1}, 64<<10), bytes.Repeat([]byte{2}, 64<<10)
	for _, err := range []error{
		block.WriteAt(m, one, 0), block.Flush(m), block.WriteAt(m, two[:32<<10], 0),
		block.Do(m, &block.IO{Op: block.OpWrite, FUA: true, Len: 4096, Data: two[:4096]}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := m.Crash(rand.New(rand.NewPCG(1, 1))).Bytes()
	kept, lost := 0, 0
	for at := 0; at < len(got); at += 4096 {
		b := got[at : at+4096]
		switch {
		case at == 0 && !bytes.Equal(b, two[:4096]):
			t.Error("a FUA write was lost")
		case at >= 32<<10 && !bytes.Equal(b, one[:4096]):
			t.Errorf("flushed content was lost at %d", at)
		case at > 0 && at < 32<<10 && b[0] == 2:
			kept++
		case at > 0 && at < 32<<10:
			lost++
		}
	}
	if kept == 0 || lost == 0 {
		t.Errorf("%d unflushed blocks kept, %d lost; want some of both", kept, lost)
	}
}

func TestMemoryGrow(t *testing.T) {
	m := NewMemory(1 << 20)
	if err := block.WriteAt(m, []byte("x"), 1<<20); !errors.Is(err, volume.ErrOutOfRange) {
		t.Errorf("write past the end: %v", err)
	}
	m.Grow(2 << 20)
	if err := block.WriteAt(m, []byte("x"), 1<<20); err != nil || m.Size() != 2<<20 {
		t.Errorf("after Grow: %v, size %d", err, m.Size())
	}
}
