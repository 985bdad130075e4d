package volume

import (
	"math"
	"strconv"
	"strings"
)

// byteUnits are the suffixes that ParseBytes knows.
var byteUnits = map[string]int64{"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

// ParseBytes reads a size in bytes: "8Gi", "500Mi", "4096".
func ParseBytes(s string) (int64, error) {
	digits := strings.TrimRight(strings.TrimSuffix(s, "B"), "KMGTi")
	unit, known := byteUnits[strings.TrimPrefix(strings.TrimSuffix(s, "B"), digits)]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !known || n <= 0 || n > math.MaxInt64/unit {
		return 0, Invalid("size", s, "a positive number of bytes, or with Ki, Mi, Gi or Ti")
	}
	return n * unit, nil
}
