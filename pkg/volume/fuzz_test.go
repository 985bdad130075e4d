package volume

import (
	"errors"
	"math/big"
	"regexp"
	"strconv"
	"testing"
)

// FuzzParseBytes: what is accepted is a number with a unit and nothing else, and
// comes out as large as it says; what says so and fits is accepted.
func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{
		"4096", "8Gi", "8GiB", "500Mi", "1B", "+1Ki", "007", "8388607Ti", "8388608Ti", "9223372036854775807",
		"9223372036854775808", "", "0", "-1", "Gi", "1G", "1iG", "1GiBB", "1 Gi", "1e3", "0x10", "1_000", "1.5Gi", "1KiMi",
	} {
		f.Add(s)
	}
	shape := regexp.MustCompile(`^([+-]?[0-9]+)(Ki|Mi|Gi|Ti)?B?$`)
	shifts := map[string]uint{"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseBytes(s)
		if err != nil && (!errors.Is(err, ErrInvalid) || got != 0) {
			t.Errorf("%q: %d, %v; want ErrInvalid", s, got, err)
		}
		want := new(big.Int)
		if m := shape.FindStringSubmatch(s); m != nil {
			want.SetString(m[1], 10)
			want.Lsh(want, shifts[m[2]])
		}
		good := want.IsInt64() && want.Sign() > 0
		if good != (err == nil) || good && got != want.Int64() {
			t.Errorf("%q: %d, %v; want %v", s, got, err, want)
		}
		if err == nil {
			if again, err := ParseBytes(strconv.FormatInt(got, 10)); err != nil || again != got {
				t.Errorf("%d in digits: %d, %v", got, again, err)
			}
		}
	})
}
