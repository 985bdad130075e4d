package agent

import (
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Session names an open session of a replica.
type Session struct {
	UID     volume.UID
	Epoch   volume.Epoch
	Session volume.Session
}

// maxRegions bounds what a peer may claim to have: a volume of 4 EiB.
const maxRegions = 1 << 46

// Regions reads a map of the session's replica; see replica.Session. A large one
// comes in parts, each of them as it is when it is read.
func (c *Clients) Regions(ctx context.Context, addr string, s Session, kind volume.MapKind, about string) (*bitmap.Set, error) {
	var set *bitmap.Set
	for first := 0; set == nil || first < set.Len(); {
		r, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.ReadRegionsResponse, error) {
			return a.ReadRegions(ctx, &agentpb.ReadRegionsRequest{
				VolumeUid: string(s.UID), Epoch: uint64(s.Epoch), Session: uint32(s.Session), Map: string(kind), About: about, First: uint64(first),
			})
		})
		if err != nil {
			return nil, err
		}
		if set == nil && r.Count <= maxRegions {
			set = bitmap.New(int(r.Count))
		}
		if set == nil || set.Len() > first && len(r.Bits) == 0 {
			return nil, fmt.Errorf("agent %s: %d of %d regions at %d: %w", addr, 8*len(r.Bits), r.Count, first, volume.ErrUnavailable)
		}
		set.OrBytes(first, r.Bits)
		first += 8 * len(r.Bits)
	}
	return set, nil
}

// Rotate begins a generation of intent bits.
func (c *Clients) Rotate(ctx context.Context, addr string, s Session, generation uint64) error {
	_, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.RotateIntentResponse, error) {
		return a.RotateIntent(ctx, &agentpb.RotateIntentRequest{
			VolumeUid: string(s.UID), Epoch: uint64(s.Epoch), Session: uint32(s.Session), Generation: generation,
		})
	})
	return err
}

// DropIntent is what DropPrevious is called with.
type DropIntent struct {
	Session
	Generation uint64
	Away       []volume.Absent // replicas that are not in sync
}

// DropPrevious clears the intent bits of older generations. ErrUnsupported: they are
// cleared, but the node is older than the notes that were to be made of resyncs.
func (c *Clients) DropPrevious(ctx context.Context, addr string, d DropIntent) error {
	q := &agentpb.DropIntentRequest{VolumeUid: string(d.UID), Epoch: uint64(d.Epoch), Session: uint32(d.Session.Session), Generation: d.Generation}
	for _, a := range d.Away {
		q.Away = append(q.Away, a.Name)
		if a.Progress != (volume.Progress{}) {
			q.Resyncs = append(q.Resyncs, &agentpb.ResyncProgress{Replica: a.Name, BelowBytes: a.Below, Whole: a.Whole})
		}
	}
	r, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.DropIntentResponse, error) {
		return a.DropIntent(ctx, q)
	})
	if err == nil && len(q.Resyncs) > 0 && !r.ResyncsNoted {
		err = fmt.Errorf("agent %s: it does not note the progress of resyncs: %w", addr, volume.ErrUnsupported)
	}
	return err
}

// DropCopied is what Clients.DropCopied is called with.
type DropCopied struct {
	Session
	Generation uint64
	Progress   volume.Progress
}

// DropCopied clears the intent bits of older generations of a replica that is resynced.
func (c *Clients) DropCopied(ctx context.Context, addr string, d DropCopied) error {
	_, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.DropCopiedResponse, error) {
		return a.DropCopied(ctx, &agentpb.DropCopiedRequest{
			VolumeUid: string(d.UID), Epoch: uint64(d.Epoch), Session: uint32(d.Session.Session), Generation: d.Generation,
			Progress: &agentpb.ResyncProgress{BelowBytes: d.Progress.Below, Whole: d.Progress.Whole},
		})
	})
	return err
}

// HashBlocks is a range to be hashed, in bytes.
type HashBlocks struct {
	Session
	Off, Len int64
}

// Hashes hashes a range of the session's replica; see replica.Session.
func (c *Clients) Hashes(ctx context.Context, addr string, h HashBlocks) ([]byte, error) {
	r, err := call(ctx, c, addr, func(ctx context.Context, a agentpb.AgentClient) (*agentpb.HashBlocksResponse, error) {
		return a.HashBlocks(ctx, &agentpb.HashBlocksRequest{
			VolumeUid: string(h.UID), Epoch: uint64(h.Epoch), Session: uint32(h.Session.Session), Offset: h.Off, Length: h.Len,
		})
	})
	return r.GetHashes(), err
}
