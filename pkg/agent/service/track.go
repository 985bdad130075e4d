package service

import (
	"context"
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// session is what all requests under an open session name.
type session interface {
	GetVolumeUid() string
	GetEpoch() uint64
	GetSession() uint32
}

// under runs f with the session that a request names; one that is over is
// refused, before f and in it.
func (s *Server) under(r session, f func(*replica.Session) error) error {
	ses, err := s.replicas.Session(volume.UID(r.GetVolumeUid()), volume.Epoch(r.GetEpoch()), volume.Session(r.GetSession()))
	if err == nil {
		err = f(ses)
	}
	if err != nil {
		return rpcerr.ToStatus(err)
	}
	return nil
}

// maxMapBytes bounds one answer of ReadRegions, well below what gRPC takes.
const maxMapBytes = 1 << 20

// ReadRegions reads a map of a replica's regions.
func (s *Server) ReadRegions(ctx context.Context, r *agentpb.ReadRegionsRequest) (*agentpb.ReadRegionsResponse, error) {
	out := &agentpb.ReadRegionsResponse{}
	err := s.under(r, func(ses *replica.Session) error {
		set, err := ses.Regions(ctx, volume.MapKind(r.Map), r.About)
		if err != nil {
			return err
		}
		bits := set.Bytes()
		if r.First%8 != 0 || r.First/8 > uint64(len(bits)) {
			return fmt.Errorf("regions from %d on of %d: %w", r.First, set.Len(), volume.ErrOutOfRange)
		}
		bits = bits[r.First/8:]
		out.Count, out.Bits = uint64(set.Len()), bits[:min(len(bits), maxMapBytes)]
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RotateIntent begins a generation of intent bits.
func (s *Server) RotateIntent(ctx context.Context, r *agentpb.RotateIntentRequest) (*agentpb.RotateIntentResponse, error) {
	err := s.under(r, func(ses *replica.Session) error { return ses.Rotate(ctx, r.Generation) })
	if err != nil {
		return nil, err
	}
	return &agentpb.RotateIntentResponse{}, nil
}

// DropIntent clears the intent bits of older generations.
func (s *Server) DropIntent(ctx context.Context, r *agentpb.DropIntentRequest) (*agentpb.DropIntentResponse, error) {
	progress := map[string]volume.Progress{}
	for _, p := range r.Resyncs {
		progress[p.Replica] = progressOf(p)
	}
	var away []volume.Absent
	for _, name := range r.Away {
		away = append(away, volume.Absent{Name: name, Progress: progress[name]})
	}
	err := s.under(r, func(ses *replica.Session) error { return ses.DropPrevious(ctx, r.Generation, away) })
	if err != nil {
		return nil, err
	}
	return &agentpb.DropIntentResponse{ResyncsNoted: true}, nil
}

func progressOf(p *agentpb.ResyncProgress) volume.Progress {
	return volume.Progress{Below: p.GetBelowBytes(), Whole: p.GetWhole()}
}

// DropCopied clears the intent bits of what was copied to the replica.
func (s *Server) DropCopied(ctx context.Context, r *agentpb.DropCopiedRequest) (*agentpb.DropCopiedResponse, error) {
	err := s.under(r, func(ses *replica.Session) error { return ses.DropCopied(ctx, r.Generation, progressOf(r.Progress)) })
	if err != nil {
		return nil, err
	}
	return &agentpb.DropCopiedResponse{}, nil
}

// HashBlocks hashes a range.
func (s *Server) HashBlocks(ctx context.Context, r *agentpb.HashBlocksRequest) (*agentpb.HashBlocksResponse, error) {
	out := &agentpb.HashBlocksResponse{}
	err := s.under(r, func(ses *replica.Session) (err error) {
		out.Hashes, err = ses.Hashes(ctx, r.Offset, r.Length)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
