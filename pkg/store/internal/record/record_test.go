package record_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/store/internal/record"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestGolden holds the stored form: it changes only together with the format's
// number.
func TestGolden(t *testing.T) {
	v := volume.Volume{ID: "hv-0", UID: "u", Version: 7, Spec: volume.Spec{Name: "a", SizeBytes: 4096}}
	const want = `{"format":2,"kind":"volumes","object":{"id":"hv-0","uid":"u",` +
		`"spec":{"name":"a","sizeBytes":4096,"params":{"replicas":0,"locality":"","cacheMode":""}},` +
		`"status":{"phase":"","sizeBytes":0,"epoch":0,"clean":false,"format":{},"replicas":null}}}`
	data, err := record.Volumes.Encode(&v)
	if err != nil || string(data) != want {
		t.Fatalf("err %v\n got %s\nwant %s", err, data, want)
	}
	got, err := record.Volumes.Decode("hv-0", data, 7)
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// FuzzDecode: any bytes are either an object that is stored as the same again,
// or an error with one of two meanings.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `{"format":1,"kind":"nodes","object":{"id":"x"}}`, `{"format":2}`,
		`{"format":1,"kind":"nodes","object":{"id":"x","topology":{"a":"b"},"pools":[{"overProvision":1e3}],"lease":-5}}`,
		`{"format":1e99,"kind":"nodes","object":{}}`, `{"format":1,"kind":"nodes","object":{"id":"x","id":"x"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		obj, err := record.Nodes.Decode("x", data, 3)
		if err != nil {
			if !errors.Is(err, volume.ErrCorrupt) && !errors.Is(err, volume.ErrFormatVersion) {
				t.Fatalf("error without meaning: %v", err)
			}
			return
		}
		again, err := record.Nodes.Encode(&obj)
		if errors.Is(err, volume.ErrInvalid) && len(data) > record.MaxBytes/8 {
			return // may grow beyond the limit by escaping
		}
		if err != nil {
			t.Fatal(err)
		}
		back, err := record.Nodes.Decode("x", again, 3)
		if err != nil || !reflect.DeepEqual(back, obj) {
			t.Fatalf("%+v came back as %+v, %v", obj, back, err)
		}
	})
}
