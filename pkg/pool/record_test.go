package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

type sample struct {
	Text   string `json:"text"`
	Number int64  `json:"number"`
}

func (s *sample) Check() error {
	if s.Number < 0 {
		return volume.ErrCorrupt
	}
	return nil
}

// later is what a later version may write into the same kind.
type later struct {
	sample
	Later bool `json:"later"`
}

const kindSample Kind = "holdfast-sample"

func encodeSample(t testing.TB) []byte {
	t.Helper()
	data, err := EncodeRecord(kindSample, &sample{Text: "a <b> & \"c\" \u2028", Number: 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRecordRoundTrip(t *testing.T) {
	data := encodeSample(t)
	var reformatted bytes.Buffer // an administrator's editor or jq may do this
	if err := json.Indent(&reformatted, data, "", "\t"); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"as written": data, "reformatted": reformatted.Bytes()} {
		var got sample
		if err := DecodeRecord(kindSample, text, &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := (sample{Text: "a <b> & \"c\" \u2028", Number: 1 << 60}); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestRecordRefusesEveryTruncationAndBitFlip(t *testing.T) {
	data := encodeSample(t)
	for n := range len(data) - 1 { // without the last newline it is still whole
		var got sample
		if err := DecodeRecord(kindSample, data[:n], &got); !errors.Is(err, volume.ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	var original sample
	if err := DecodeRecord(kindSample, data, &original); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			var got sample
			// Flips of white space, and of the case of an envelope's key, change
			// nothing; all others must be noticed.
			if err := DecodeRecord(kindSample, flipped, &got); err == nil && got != original {
				t.Fatalf("bit %d of byte %d flipped: accepted as %+v", bit, i, got)
			}
		}
	}
}

func TestRecordErrors(t *testing.T) {
	whole := string(encodeSample(t))
	tests := []struct {
		name, data string
		want       error
		says       string
	}{
		{"empty", "", volume.ErrCorrupt, "0 bytes"},
		{"zeroes", strings.Repeat("\x00", 512), volume.ErrCorrupt, ""},
		{"two records", whole + whole, volume.ErrCorrupt, ""},
		{"an array", "[]", volume.ErrCorrupt, ""},
		{"foreign JSON", `{"Version":"1","Rebuilding":false}`, volume.ErrFormatVersion, "not written by Holdfast"},
		{"another kind", strings.Replace(whole, string(kindSample), "holdfast-pool", 1), volume.ErrFormatVersion, "holdfast-pool"},
		{"newer format", strings.Replace(whole, `"format": 1`, `"format": 2`, 1), volume.ErrFormatVersion, "format version 2"},
		{"no body", `{"kind":"holdfast-sample","format":1,"crc32c":"00000000"}`, volume.ErrCorrupt, ""},
		{"changed number", strings.Replace(whole, "1152921504606846976", "1152921504606846977", 1), volume.ErrCorrupt, "checksum"},
		{"too large", whole + strings.Repeat(" ", MaxRecordBytes), volume.ErrCorrupt, "more than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got sample
			err := DecodeRecord(kindSample, []byte(tt.data), &got)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v saying %q", err, tt.want, tt.says)
			}
		})
	}
	t.Run("unknown field", func(t *testing.T) {
		data, err := EncodeRecord(kindSample, &later{Later: true})
		if err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := DecodeRecord(kindSample, data, &got); !errors.Is(err, volume.ErrCorrupt) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRecordTooLargeIsNeverWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	for _, tt := range []struct {
		size int
		want error
	}{{MaxRecordBytes / 2, nil}, {MaxRecordBytes, volume.ErrOutOfRange}} {
		body := sample{Text: strings.Repeat("x", tt.size)}
		if err := WriteRecord(OS{}, path, kindSample, &body); !errors.Is(err, tt.want) {
			t.Errorf("%d bytes: %v, want %v", tt.size, err, tt.want)
		}
		var got sample
		if err := ReadRecord(OS{}, path, kindSample, &got); err != nil || len(got.Text) != MaxRecordBytes/2 {
			t.Errorf("afterwards: %d bytes, %v", len(got.Text), err)
		}
	}
}

func TestReadRecordFollowsNoSymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outside"), encodeSample(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("outside", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var got sample
	if err := ReadRecord(OS{}, filepath.Join(dir, "link"), kindSample, &got); err == nil {
		t.Error("read through a symlink")
	}
	if err := ReadRecord(OS{}, dir, kindSample, &got); err == nil {
		t.Error("read a directory")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(encodeSample(f))
	f.Add([]byte(`{"kind":"holdfast-sample","format":1,"crc32c":"","body":{}}`))
	f.Add([]byte(`{"kind":"holdfast-sample","format":1,"crc32c":"00000000","body":null}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got sample
		err := DecodeRecord(kindSample, data, &got)
		if err != nil {
			if !errors.Is(err, volume.ErrCorrupt) && !errors.Is(err, volume.ErrFormatVersion) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		again, err := EncodeRecord(kindSample, &got)
		if err != nil {
			t.Fatal(err)
		}
		var twice sample
		if err := DecodeRecord(kindSample, again, &twice); err != nil || twice != got {
			t.Fatalf("%+v became %+v (%v)", got, twice, err)
		}
	})
}
