package csi

import (
	"fmt"
	"math"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// DefaultSizeBytes is the size of a volume for which none was asked.
const DefaultSizeBytes int64 = 1 << 30

// chooseSize picks the size of a new volume: what is required, rounded up to
// whole units, or else the default, as far as the limit allows. minimum is the
// smallest volume for the capability. ErrInvalid for a range that makes no
// sense, ErrOutOfRange for one that can't be served.
func chooseSize(r *csipb.CapacityRange, minimum int64) (int64, error) {
	required, limit, err := CheckRange(r)
	if err != nil {
		return 0, err
	}
	size := required
	if size == 0 {
		size = max(DefaultSizeBytes, minimum)
		if limit > 0 {
			size = min(size, limit/volume.SizeUnit*volume.SizeUnit)
		}
	}
	size, err = roundUp(size, limit)
	if err != nil {
		return 0, err
	}
	if size < minimum {
		return 0, fmt.Errorf("capacity_range: %d bytes is less than the minimum of %d for this kind of volume: %w", size, minimum, volume.ErrOutOfRange)
	}
	return size, nil
}

// CheckRange checks a capacity range and returns what it asks for; 0 means
// unspecified. ErrInvalid for one that is negative or contradicts itself.
func CheckRange(r *csipb.CapacityRange) (required, limit int64, err error) {
	required, limit = r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case required < 0:
		return 0, 0, volume.Invalid("capacity_range.required_bytes", fmt.Sprint(required), "not negative")
	case limit < 0:
		return 0, 0, volume.Invalid("capacity_range.limit_bytes", fmt.Sprint(limit), "not negative")
	case limit > 0 && limit < required:
		return 0, 0, volume.Invalid("capacity_range.limit_bytes", fmt.Sprint(limit), fmt.Sprintf("at least required_bytes, %d", required))
	}
	return required, limit, nil
}

// roundUp rounds up to whole units, but never over the limit.
func roundUp(size, limit int64) (int64, error) {
	if size > math.MaxInt64-volume.SizeUnit {
		return 0, fmt.Errorf("capacity_range: %d bytes is more than any volume can have: %w", size, volume.ErrOutOfRange)
	}
	rounded := (size + volume.SizeUnit - 1) / volume.SizeUnit * volume.SizeUnit
	if limit > 0 && rounded > limit {
		return 0, fmt.Errorf("capacity_range: no multiple of %d lies between %d and %d: %w", volume.SizeUnit, size, limit, volume.ErrOutOfRange)
	}
	return rounded, nil
}
