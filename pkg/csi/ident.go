package csi

import (
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// VolumeID checks the volume_id of a request. An empty one, or one that could be
// taken for a path, is ErrInvalid; any other that isn't of our form names no
// volume, which is ErrNotFound.
func VolumeID(given string) (volume.ID, error) {
	id := volume.ID(given)
	if id.Validate() == nil {
		return id, nil
	}
	pathLike := given == "." || given == ".." || strings.ContainsFunc(given, func(r rune) bool {
		return r == '/' || r == '\\' || r < 0x20 || r == 0x7f
	})
	if given == "" || pathLike || len(given) > volume.MaxNameBytes {
		return "", volume.Invalid("volume_id", given, "an identifier that CreateVolume returned")
	}
	return "", fmt.Errorf("volume %q: %w", given, volume.ErrNotFound)
}
