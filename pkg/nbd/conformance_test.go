package nbd

import (
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// TestConformance runs the suite of all devices over the wire.
func TestConformance(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server ServerOptions
		client DialOptions
		mem    func(*blocktest.Memory)
	}{
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
				return dial(t, client)
			}, blocktest.Options{Ops: 200})
		})
	}
}
