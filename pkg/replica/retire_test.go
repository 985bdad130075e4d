package replica

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func retire(u volume.UID, epoch volume.Epoch) RetireOptions {
	return RetireOptions{Volume: vol, UID: u, Epoch: epoch}
}

func TestRetire(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	open(t, s, opening(uid(1), 5, 1))

	wantErr(t, "an order from before the replica was opened anew", s.Retire(deadline(t), retire(uid(1), 4)), volume.ErrFenced)
	if _, err := s.Get(uid(1)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "retire", s.Retire(deadline(t), retire(uid(1), 5)), nil)
	_, err := s.Get(uid(1))
	wantErr(t, "get", err, volume.ErrNotFound)
	wantErr(t, "again", s.Retire(deadline(t), retire(uid(1), 5)), nil)
	if left := entries(t, s.opts.Pools[0].ReplicasDir()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// What is kept lies in the trash, whole; another replica of the volume can be made
// and kept beside it, and restarts leave the trash alone.
func TestRetireKeeps(t *testing.T) {
	s := newServer(t, Options{})
	for range 2 {
		create(t, s, uid(1), mib)
		o := retire(uid(1), 0)
		o.Keep = true
		wantErr(t, "retire", s.Retire(deadline(t), o), nil)
	}
	s = restart(t, s)
	trash := filepath.Join(s.opts.Pools[0].Path(), trashDir)
	found, err := os.ReadDir(trash)
	if err != nil || len(found) != 2 {
		t.Fatalf("the trash has %v (%v)", found, err)
	}
	for _, e := range found {
		if _, err := os.Stat(filepath.Join(trash, e.Name(), imageFile)); err != nil || !strings.HasPrefix(e.Name(), string(uid(1))) {
			t.Errorf("%s: %v", e.Name(), err)
		}
	}
	if len(s.List()) != 0 {
		t.Error("what is in the trash is listed")
	}
	if st, err := stats(s); err != nil || st.Promised != 0 {
		t.Errorf("promised %d (%v)", st.Promised, err)
	}
}

func TestKeepsTheVolumesObject(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	create(t, s, uid(2), mib)
	v := volume.Volume{ID: vol, UID: uid(1), Version: 7, Spec: volume.Spec{Name: "x"}}
	v.Status.Replicas = []volume.Replica{{Node: "a", State: volume.InSync}}
	wantErr(t, "keep", s.Keep(v), nil)
	v.Version = 9
	wantErr(t, "keep", s.Keep(v), nil)
	unknown := v
	unknown.UID = uid(3)
	wantErr(t, "keep of a volume that has no replica here", s.Keep(unknown), volume.ErrNotFound)

	s = restart(t, s)
	records := s.Records()
	if len(records) != 2 || records[1].Object != nil || records[1].UID != uid(2) {
		t.Fatalf("records %+v", records)
	}
	var k volume.Kept
	if err := json.Unmarshal(records[0].Object, &k); err != nil || k.Version != 9 || k.Volume.Spec.Name != "x" || len(k.Volume.Status.Replicas) != 1 {
		t.Errorf("kept %+v (%v)", k, err)
	}
	// A damaged copy is as good as none.
	path := filepath.Join(replicaDir(s, uid(1)), copyFile)
	wantErr(t, "damage", os.WriteFile(path, []byte("{}"), 0o600), nil)
	if r := s.Records()[0]; r.Object != nil || r.UID != uid(1) {
		t.Errorf("record %+v", r)
	}
}
