package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedRecord: what is mounted is recognised, and the record written anew.
func TestDamagedRecord(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.must(w.stage(mountCap("")))
	file := w.service.records.path(w.id)
	whole := readFile(t, file)
	for name, text := range map[string]string{
		"empty": "", "garbage": "{", "cut": whole[:len(whole)/2],
		"another path":     strings.Replace(whole, "globalmount", "globalmoums", 1),
		"another volume's": encode(t, record{Volume: volume.IDFor("other"), Path: staging, FSType: "xfs"}),
		"no path":          encode(t, record{Volume: w.id, FSType: "xfs"}),
		"block with xfs":   encode(t, record{Volume: w.id, Path: staging, FSType: "xfs", Block: true}),
		"bad target":       encode(t, record{Volume: w.id, Path: staging, FSType: "xfs", Targets: map[string]target{"../x": {}}}),
	} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, file, text)
			w.must(w.stage(mountCap("")))
			if got := readFile(t, file); got != whole {
				t.Errorf("record: %s", got)
			}
		})
	}
	writeFile(t, file, "garbage")
	w.must(w.unstage())
	w.nothingLeft()
}

func encode(t testing.TB, rec record) string {
	t.Helper()
	data, err := pool.EncodeRecord(kindStaged, &rec)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestRecordOfAnotherFormat is left alone, and named to whoever calls.
func TestRecordOfAnotherFormat(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.must(w.stage(mountCap("")))
	w.must(w.publish(target1, mountCap("")))
	file := w.service.records.path(w.id)
	whole := readFile(t, file)
	for name, text := range map[string]string{
		"newer": strings.Replace(whole, `"format": 1`, `"format": 2`, 1), "another kind": strings.Replace(whole, "holdfast-staged", "holdfast-other", 1),
	} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, file, text)
			before := w.host.state()
			for call, err := range map[string]error{
				"stage": w.stage(mountCap("")), "publish": w.publish(target2, mountCap("")), "unpublish": w.unpublish(target1), "unstage": w.unstage(),
			} {
				w.wantCode(call, err, codes.FailedPrecondition)
				if !errors.Is(err, volume.ErrFormatVersion) || !strings.Contains(err.Error(), file) {
					t.Errorf("%s: %v", call, err)
				}
			}
			if readFile(t, file) != text || w.host.state() != before {
				t.Errorf("changed: %s\n%s", readFile(t, file), w.host.state())
			}
		})
	}
	writeFile(t, file, whole)
	w.must(w.unpublish(target1))
	w.must(w.unstage())
	w.nothingLeft()
}

// TestTooManyTargets: a record that could not be read again is never written.
func TestTooManyTargets(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	multi := inMode(mountCap(""), csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)
	w.must(w.stage(multi))
	var published []string
	for n := range 1000 {
		path := fmt.Sprintf("%s/pods/%s%d", kubelet, strings.Repeat("x", 1000), n)
		err := w.publish(path, multi)
		if err != nil {
			w.wantCode("one too many", err, codes.OutOfRange)
			break
		}
		published = append(published, path)
	}
	if len(published) < 50 || len(published) == 1000 {
		t.Errorf("published %d times", len(published))
	}
	for _, path := range published {
		w.must(w.unpublish(path))
	}
	w.must(w.unstage())
	w.nothingLeft()
}

// sealed makes a record of any body, with the right checksum, so that the fuzzer
// gets past it.
func sealed(body []byte) []byte {
	var compact bytes.Buffer
	if json.Compact(&compact, body) != nil {
		return body
	}
	sum := crc32.Checksum(compact.Bytes(), crc32.MakeTable(crc32.Castagnoli))
	return fmt.Appendf(nil, `{"kind":%q,"format":%d,"crc32c":"%08x","body":%s}`, kindStaged, pool.FormatVersion, sum, body)
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(encode(f, record{Volume: volume.IDFor("v"), Path: staging, Block: true, Device: "/dev/loop0", Kind: kindLoop})))
	f.Add([]byte(`{"kind":"holdfast-staged","format":1,"crc32c":"00000000","body":null}`))
	f.Add(fmt.Appendf(nil, `{"volume":%q,"path":%q,"fsType":"xfs","mountFlags":["ro"],"targets":{"/t":{"readOnly":true}}}`, volume.IDFor("v"), staging))
	f.Add(fmt.Appendf(nil, `{"volume":%q,"path":%q,"block":true}`, volume.IDFor("v"), staging))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, text := range [][]byte{data, sealed(data)} {
			var rec record
			if err := pool.DecodeRecord(kindStaged, text, &rec); err != nil {
				if !errors.Is(err, volume.ErrCorrupt) && !errors.Is(err, volume.ErrFormatVersion) {
					t.Fatalf("an error of no known kind: %v", err)
				}
				continue
			}
			if rec.Volume.Validate() != nil || !strings.HasPrefix(rec.Path, "/") {
				t.Fatalf("accepted: %+v", rec)
			}
			again, err := pool.EncodeRecord(kindStaged, &rec)
			if errors.Is(err, volume.ErrOutOfRange) {
				continue // indented it is longer than it was
			}
			if err != nil {
				t.Fatal(err)
			}
			var twice record
			if err := pool.DecodeRecord(kindStaged, again, &twice); err != nil || fmt.Sprint(rec) != fmt.Sprint(twice) {
				t.Fatalf("%+v became %+v (%v)", rec, twice, err)
			}
		}
	})
}
