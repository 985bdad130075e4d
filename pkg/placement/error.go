package placement

import (
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Refusal says why one node can't take a replica.
type Refusal struct {
	Node   volume.NodeID
	Reason string
}

// Error says why there is no place for a volume, node by node.
type Error struct {
	Err      error  // the sentinel
	Need     string // what was looked for and what was found, as a sentence
	Refusals []Refusal
}

// maxRefusals bounds the nodes that an error's text names.
const maxRefusals = 20

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Err, e.Need)
	for i, r := range e.Refusals {
		if i == maxRefusals {
			fmt.Fprintf(&b, "; and %d nodes more", len(e.Refusals)-i)
			break
		}
		fmt.Fprintf(&b, "; node %s: %s", r.Node, r.Reason)
	}
	return b.String()
}

// Unwrap makes errors.Is work with the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// explain finds out what is in the way: it asks again with more and more
// obstacles ignored, and the first that doesn't help is to blame.
func (r *Request) explain(w wish, refused []Refusal) error {
	fail := func(sentinel error, format string, args ...any) error {
		return &Error{Err: sentinel, Need: fmt.Sprintf(format, args...), Refusals: refused}
	}
	if len(r.Cluster.Nodes) == 0 {
		return fail(volume.ErrUnavailable, "no node has registered yet")
	}
	if err := r.checkNames(); err != nil {
		return err
	}
	want, key := r.Params.Replicas, domainKey(r.Params)
	fits := func(l level, requisite []map[string]string) (int, bool) {
		x := w
		x.requisite = requisite
		cs, _ := r.Cluster.candidates(x, l)
		n, anchored := domains(cs)
		return n, n >= want && anchored
	}
	if n, ok := fits(shape, nil); !ok {
		return fail(volume.ErrPrecondition, "%d replicas need %d different values of %q, the cluster has %d", want, want, key, n)
	}
	if n, ok := fits(shape, w.requisite); !ok {
		return fail(volume.ErrNoSpace, "%d replicas need %d different values of %q in the requisite topology, it has %d", want, want, key, n)
	}
	if n, ok := fits(empty, w.requisite); !ok {
		return fail(volume.ErrOutOfRange, "%d replicas of %d bytes: only %d of the places that may be used could hold that when empty", want, w.size, n)
	}
	have, _ := fits(now, w.requisite)
	if _, ok := fits(back, w.requisite); ok {
		return fail(volume.ErrUnavailable, "%d replicas of %d bytes: found room for %d, nodes are away", want, w.size, have)
	}
	return fail(volume.ErrNoSpace, "%d replicas of %d bytes, each with another value of %q: found room for %d", want, w.size, key, have)
}

// checkNames refuses a spread key or a pool name that nobody has: that is a
// wrong parameter rather than a full cluster.
func (r *Request) checkNames() error {
	key, pool := r.Params.Spread, r.Params.PoolSelector
	hasKey, hasPool := key == "", pool == ""
	for i := range r.Cluster.Nodes {
		n := &r.Cluster.Nodes[i]
		if _, ok := domainOf(n, domainKey(r.Params)); ok {
			hasKey = true
		}
		for _, p := range n.Pools {
			hasPool = hasPool || p.Name == pool
		}
	}
	if !hasKey {
		return volume.Invalid("parameters.spread", key, "a topology key that some node has")
	}
	if !hasPool {
		return volume.Invalid("parameters.pool", pool, "the name of a pool that some node has")
	}
	return nil
}
