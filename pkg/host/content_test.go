package host

import (
	"errors"
	"os"
	"testing"
)

func TestContentOfWhatIsNoFilesystem(t *testing.T) {
	const size = 320 << 20
	tests := map[string]struct {
		write func(t *testing.T, h *Host, device string)
		want  string
	}{
		"nothing":                {func(*testing.T, *Host, string) {}, "nothing"},
		"one byte in the middle": {writeAt(size/2, "x"), "nothing"}, // outside of where signatures are
		"one byte at the start":  {writeAt(700<<10, "x"), "data that is no known filesystem"},
		"one byte at the end":    {writeAt(size-1, "x"), "data that is no known filesystem"},
		"partition table":        {writeAt(446, "\x00\x02\x03\x00\x83\x04\x05\x06\x08\x00\x00\x00\x10\x00\x00\x00", 510, "\x55\xaa"), "a partition table of type dos"},
		"swap":                   {writeAt(4086, "SWAPSPACE2", 1024, "\x01\x00\x00\x00\xff\x00\x00\x00"), "a filesystem of type swap"},
		"interrupted mkfs.xfs": {func(t *testing.T, h *Host, device string) {
			if err := h.Format(t.Context(), FormatOptions{Device: device, FSType: "xfs"}); err != nil {
				t.Fatal(err)
			}
			writeAt(126, "\x01")(t, h, device) // sb_inprogress
		}, "an incomplete filesystem of type xfs"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "blkid", "mkfs.xfs")
			device, _ := loop(t, size)
			test.write(t, h, device)
			content, err := h.Content(testContext(t), device)
			if err != nil || content.String() != test.want {
				t.Errorf("content: %q (%+v), %v; want %q", content, content, err, test.want)
			}
		})
	}
}

// writeAt writes pairs of an offset and data to the device.
func writeAt(pairs ...any) func(*testing.T, *Host, string) {
	return func(t *testing.T, h *Host, device string) {
		t.Helper()
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(pairs); i += 2 {
			offset, _ := pairs[i].(int)
			data, _ := pairs[i+1].(string)
			if _, err := f.WriteAt([]byte(data), int64(offset)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzParseSuperblock(f *testing.F) {
	f.Add(make([]byte, superblockBytes))
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		padded := append(b, make([]byte, superblockBytes)...)
		if fsType, size := parseSuperblock(padded); (fsType == "") != (size == 0) || size < 0 {
			t.Errorf("type %q, size %d", fsType, size)
		}
	})
}
