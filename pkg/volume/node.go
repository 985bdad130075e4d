package volume

import (
	"maps"
	"slices"
	"time"
)

// Node is the store's object for one node; its holdfast-node writes it.
type Node struct {
	ID      NodeID `json:"id"`
	Version int64  `json:"-"` // as Volume.Version

	AgentAddr   string            `json:"agentAddr"`   // host:port of the agent's gRPC
	ReplicaAddr string            `json:"replicaAddr"` // host:port of the replica server (NBD)
	Topology    map[string]string `json:"topology"`    // always has TopologyHost
	MaxVolumes  int64             `json:"maxVolumes"`
	Pools       []Pool            `json:"pools"`

	// Heartbeat counts up with every renewal of the node's lease. Observers
	// compare it with what they saw before, by their own clock: no two clocks
	// are ever compared. A node that shuts down in order sets Leaving.
	Heartbeat uint64        `json:"heartbeat"`
	Lease     time.Duration `json:"lease"` // stale after this long without a new Heartbeat
	Leaving   bool          `json:"leaving,omitempty"`

	// Evicting: an administrator wants no replica on this node. Only this field is
	// not the node's own: its holdfast-node keeps what it finds.
	Evicting bool `json:"evicting,omitempty"`
}

// Pool is one pool of a node, as last reported. Sizes are in bytes.
type Pool struct {
	Name     string `json:"name"`
	UID      string `json:"uid"`
	Capacity int64  `json:"capacity"` // of the filesystem
	Free     int64  `json:"free"`     // of the filesystem now
	Reserve  int64  `json:"reserve"`  // never given out
	// OverProvision is the limit of promised over usable bytes, >= 1.
	OverProvision float64 `json:"overProvision"`
	Healthy       bool    `json:"healthy"`
	Message       string  `json:"message,omitempty"` // why not healthy
}

// TopologyHost is the topology key that every node has, with its own name; the
// widest spread that a cluster without labels can offer.
const TopologyHost = "topology.holdfast.io/node"

// Clone makes a deep copy.
func (n Node) Clone() Node {
	n.Topology = maps.Clone(n.Topology)
	n.Pools = slices.Clone(n.Pools)
	return n
}

// Usable is what a pool may hold at all: capacity without the reserve.
func (p Pool) Usable() int64 { return max(0, p.Capacity-p.Reserve) }
