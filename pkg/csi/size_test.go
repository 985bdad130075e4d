package csi

import (
	"errors"
	"math"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestChooseSize(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	tests := map[string]struct {
		required, limit, minimum int64
		want                     int64
		fails                    error
	}{
		"nothing asked":                {0, 0, mib, gib, nil},
		"nothing asked, large minimum": {0, 0, 2 * gib, 2 * gib, nil},
		"required":                     {5 * gib, 0, mib, 5 * gib, nil},
		"odd":                          {5*gib + 1, 0, mib, 5*gib + 4096, nil},
		"one byte below a unit":        {5*gib - 1, 0, mib, 5 * gib, nil},
		"exact":                        {gib, gib, mib, gib, nil},
		"only a large limit":           {0, 5 * gib, mib, gib, nil},
		"only a small limit":           {0, 100*mib + 7, mib, 100 * mib, nil},
		"odd under a limit":            {gib - 100, gib, mib, gib, nil},
		"negative required":            {-1, 0, mib, 0, volume.ErrInvalid},
		"negative limit":               {0, -1, mib, 0, volume.ErrInvalid},
		"both negative":                {math.MinInt64, math.MinInt64, mib, 0, volume.ErrInvalid},
		"limit below required":         {gib, gib - 1, mib, 0, volume.ErrInvalid},
		"odd and exact":                {gib + 1, gib + 1, mib, 0, volume.ErrOutOfRange},
		"no unit in between":           {gib + 1, gib + 4095, mib, 0, volume.ErrOutOfRange},
		"required below the minimum":   {1, 0, mib, 0, volume.ErrOutOfRange},
		"limit below the minimum":      {0, mib - 1, mib, 0, volume.ErrOutOfRange},
		"limit of one byte":            {0, 1, mib, 0, volume.ErrOutOfRange},
		"xfs one unit too small":       {300*mib - 4096, 0, 300 * mib, 0, volume.ErrOutOfRange},
		"xfs smallest":                 {300 * mib, 300 * mib, 300 * mib, 300 * mib, nil},
		"largest number":               {math.MaxInt64, 0, mib, 0, volume.ErrOutOfRange},
		"largest number as a limit":    {gib, math.MaxInt64, mib, gib, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := chooseSize(&csipb.CapacityRange{RequiredBytes: test.required, LimitBytes: test.limit}, test.minimum)
			if got != test.want || !errors.Is(err, test.fails) || (err != nil) != (test.fails != nil) {
				t.Errorf("%d, %v; want %d, %v", got, err, test.want, test.fails)
			}
		})
	}
	if got, err := chooseSize(nil, mib); got != gib || err != nil {
		t.Errorf("no range: %d, %v", got, err)
	}
}
