package replica

import (
	"fmt"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// KindReplica is the kind of meta.json.
const KindReplica pool.Kind = "holdfast-replica"

const (
	metaFile  = "meta.json"
	imageFile = "data.img"
)

// meta is meta.json; the package comment has the table.
type meta struct {
	Volume      volume.ID      `json:"volume"`
	UID         volume.UID     `json:"uid"`
	SizeBytes   int64          `json:"sizeBytes"`
	GrowToBytes int64          `json:"growToBytes"`
	Guaranteed  bool           `json:"guaranteed"`
	Epoch       volume.Epoch   `json:"epoch"`   // the highest seen
	Session     volume.Session `json:"session"` // of that epoch; 0: made in it, and never opened
	Holder      volume.NodeID  `json:"holder"`
	Nonce       string         `json:"nonce"`
	Failure     string         `json:"failure"`
}

// maxSizeBytes is the largest replica: what XFS allows a file on the smallest
// page size, less a bit, so that sums of offsets never overflow.
const maxSizeBytes = 1 << 62

func checkSize(size int64) error {
	if size < volume.MinSizeBytes || size > maxSizeBytes || size%volume.SizeUnit != 0 {
		return fmt.Errorf("size %d is not a multiple of %d between %d and %d bytes: %w",
			size, volume.SizeUnit, volume.MinSizeBytes, int64(maxSizeBytes), volume.ErrOutOfRange)
	}
	return nil
}

// Check implements pool.Body.
func (m *meta) Check() error {
	bad := func(what string, value any) error {
		return fmt.Errorf("%s %v can't be: %w", what, value, volume.ErrCorrupt)
	}
	switch {
	case m.Volume.Validate() != nil:
		return bad("volume", m.Volume)
	case m.UID.Validate() != nil:
		return bad("uid", m.UID)
	case checkSize(m.SizeBytes) != nil:
		return bad("sizeBytes", m.SizeBytes)
	case m.GrowToBytes != 0 && (checkSize(m.GrowToBytes) != nil || m.GrowToBytes <= m.SizeBytes):
		return bad("growToBytes", m.GrowToBytes)
	case m.Epoch == 0 && m.Session != 0:
		return bad("session", m.Session)
	case m.Session != 0 && m.Holder.Validate() != nil:
		return bad("holder", m.Holder)
	}
	return nil
}
