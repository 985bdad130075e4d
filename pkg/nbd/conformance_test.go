package nbd

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestConformance runs the suite of all devices over the wire.
func TestConformance(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server ServerOptions
		client DialOptions
		mem    func(*blocktest.Memory)
		loop   bool
	}{
		{name: "received on a loop", mem: func(m *blocktest.Memory) { m.Reorder(5) }, loop: true},
		{name: "simple replies"},
		{name: "structured replies", client: DialOptions{BlockStatus: true}},
		{name: "out of order", mem: func(m *blocktest.Memory) { m.Reorder(1) }},
		{name: "out of order and structured", client: DialOptions{BlockStatus: true}, mem: func(m *blocktest.Memory) { m.Reorder(2) }},
		{name: "one slot in the client", client: DialOptions{MaxInflight: 1}},
		{name: "three slots in the client", client: DialOptions{MaxInflight: 3}, mem: func(m *blocktest.Memory) { m.Reorder(3) }},
		{name: "one request in the server", server: ServerOptions{MaxInflight: 1, MaxInflightBytes: 1}},
		{name: "one worker", server: ServerOptions{Workers: 1}, mem: func(m *blocktest.Memory) { m.Reorder(4) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noneLeft(t)
			blocktest.Run(t, func(t *testing.T) block.Device {
				m := blocktest.NewMemory(8 << 20)
				if tc.mem != nil {
					tc.mem(m)
				}
				server, client := tc.server, tc.client
				server.Backend = &backend{exports: map[string]Export{"x": &export{Memory: m, lastUse: true}}}
				client.Addr = serve(t, server).addr
				c := dial(t, client)
				if tc.loop {
					c.Join(blocktest.NewLoop(t))
				}
				return c
			}, blocktest.Options{Ops: 200})
		})
	}
}

// TestLoopEnds: what the client lent to a loop is its own again when that ends.
func TestLoopEnds(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
	c := dial(t, DialOptions{Addr: serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}}).addr})
	loop := blocktest.NewLoop(t)
	c.Join(loop)
	for i := range byte(50) {
		if i == 25 {
			loop.End()
		}
		p := []byte{i}
		if err := block.WriteAt(c, p, int64(i)); err != nil {
			t.Fatal(err)
		}
		if err := block.ReadAt(c, p, int64(i)); err != nil || p[0] != i {
			t.Fatalf("read %d (%v), want %d", p[0], err, i)
		}
	}
}

// brokenLoop has taken bytes that nobody will see.
type brokenLoop struct{ *blocktest.Loop }

// Start implements block.Loop.
func (l brokenLoop) Start(o *block.LoopOp) {
	l.Loop.Post(func() { o.Done(o, 0, block.ErrLoopBroken) })
}

// TestLoopBreaks: after replies were lost in a loop the stream can't be believed.
func TestLoopBreaks(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(4 << 20), lastUse: true}
	failed := make(chan error, 1)
	c := dial(t, DialOptions{
		Addr:   serve(t, ServerOptions{Backend: &backend{exports: map[string]Export{"x": x}}}).addr,
		OnFail: func(err error) { failed <- err },
	})
	c.Join(brokenLoop{blocktest.NewLoop(t)})
	select {
	case err := <-failed:
		if !errors.Is(err, volume.ErrUnavailable) || !errors.Is(err, block.ErrLoopBroken) {
			t.Errorf("the connection broke with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the connection goes on")
	}
}
