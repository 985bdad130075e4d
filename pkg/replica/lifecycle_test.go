package replica

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestCreateRefuses(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	before := entries(t, s.opts.Pools[0].ReplicasDir())
	good := CreateOptions{Volume: vol, UID: uid(2), Pool: "p", SizeBytes: mib}
	tests := []struct {
		name   string
		change func(o *CreateOptions)
		want   error
	}{
		{"size zero", func(o *CreateOptions) { o.SizeBytes = 0 }, volume.ErrOutOfRange},
		{"size negative", func(o *CreateOptions) { o.SizeBytes = -4096 }, volume.ErrOutOfRange},
		{"size odd", func(o *CreateOptions) { o.SizeBytes = mib + 512 }, volume.ErrOutOfRange},
		{"size small", func(o *CreateOptions) { o.SizeBytes = 4096 }, volume.ErrOutOfRange},
		{"size largest", func(o *CreateOptions) { o.SizeBytes = math.MaxInt64 &^ 4095 }, volume.ErrOutOfRange},
		{"larger than the pool", func(o *CreateOptions) { o.SizeBytes = 1 << 50 }, volume.ErrNoSpace},
		{"no such pool", func(o *CreateOptions) { o.Pool = "../p" }, volume.ErrNotFound},
		{"uid climbs", func(o *CreateOptions) { o.UID = "../../../etc/x" }, volume.ErrInvalid},
		{"uid empty", func(o *CreateOptions) { o.UID = "" }, volume.ErrInvalid},
		{"uid with NUL", func(o *CreateOptions) { o.UID = uid(2)[:35] + "\x00" }, volume.ErrInvalid},
		{"volume climbs", func(o *CreateOptions) { o.Volume = "hv-../../x" }, volume.ErrInvalid},
		{"exists with another size", func(o *CreateOptions) { o.UID, o.SizeBytes = uid(1), 2*mib }, volume.ErrExists},
		{"exists for another volume", func(o *CreateOptions) { o.UID, o.Volume = uid(1), other }, volume.ErrExists},
		{"exists without a guarantee", func(o *CreateOptions) { o.UID, o.Guaranteed = uid(1), true }, volume.ErrExists},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			wantErr(t, "create", s.Create(deadline(t), o), tt.want)
		})
	}
	if after := entries(t, s.opts.Pools[0].ReplicasDir()); !slices.Equal(before, after) {
		t.Errorf("left behind: %v", after)
	}
	if st, err := stats(s); err != nil || st.Promised != mib {
		t.Errorf("promised %d (%v)", st.Promised, err)
	}
}

// recorded makes a server whose file operations are written down.
func recorded(t *testing.T) (*Server, *pooltest.Recorder) {
	dir := pooltest.Mount(t, pooltest.DefaultImageBytes)
	rec := &pooltest.Recorder{Root: filepath.Join(dir, "replicas")}
	p := pooltest.Open(t, pool.Options{Name: "p", Path: dir, ReserveBytes: mib, OverProvision: 10, FS: rec})
	return newServer(t, Options{Pools: Pools(p)}), rec
}

// operations that change what is on disk, each with what it does to the disk in
// order. A fsync that vanishes shows here.
var operations = []struct {
	name   string
	golden string
	run    func(t *testing.T, s *Server) error
}{
	{
		"create", `
			remove .tmp-new-UID
			mkdir .tmp-new-UID
			create .tmp-new-UID/data.img
			truncate .tmp-new-UID/data.img 1048576
			sync .tmp-new-UID/data.img
			create .tmp-new-UID/regions.map
			write .tmp-new-UID/regions.map
			sync .tmp-new-UID/regions.map
			create .tmp-new-UID/meta.json.tmp
			write .tmp-new-UID/meta.json.tmp
			sync .tmp-new-UID/meta.json.tmp
			rename .tmp-new-UID/meta.json.tmp -> .tmp-new-UID/meta.json
			syncdir .tmp-new-UID
			rename .tmp-new-UID -> UID
			syncdir .`,
		func(t *testing.T, s *Server) error {
			return s.Create(deadline(t), CreateOptions{Volume: vol, UID: uid(1), Pool: "p", SizeBytes: mib})
		},
	},
	{
		"open", `
			create UID/meta.json.tmp
			write UID/meta.json.tmp
			sync UID/meta.json.tmp
			rename UID/meta.json.tmp -> UID/meta.json
			syncdir UID`,
		func(t *testing.T, s *Server) error {
			_, err := s.Open(deadline(t), opening(uid(1), 1, 1))
			return err
		},
	},
	{
		"next epoch", `
			create UID/meta.json.tmp
			write UID/meta.json.tmp
			sync UID/meta.json.tmp
			rename UID/meta.json.tmp -> UID/meta.json
			syncdir UID`,
		func(t *testing.T, s *Server) error {
			_, err := s.Open(deadline(t), opening(uid(1), 2, 1))
			return err
		},
	},
	{
		"grow", `
			create UID/meta.json.tmp
			write UID/meta.json.tmp
			sync UID/meta.json.tmp
			rename UID/meta.json.tmp -> UID/meta.json
			syncdir UID
			edit UID/data.img
			truncate UID/data.img 2097152
			sync UID/data.img
			create UID/meta.json.tmp
			write UID/meta.json.tmp
			sync UID/meta.json.tmp
			rename UID/meta.json.tmp -> UID/meta.json
			syncdir UID`,
		func(t *testing.T, s *Server) error { return growOpen(t, s) },
	},
	{
		"delete", `
			remove .tmp-del-UID
			rename UID -> .tmp-del-UID
			syncdir .
			remove .tmp-del-UID`,
		func(t *testing.T, s *Server) error { return s.Delete(deadline(t), vol, uid(1)) },
	},
}

// growOpen grows under the epoch that is open, or the next session after a
// restart.
func growOpen(t *testing.T, s *Server) error {
	i, err := s.Get(uid(1))
	if err != nil {
		return err
	}
	err = s.Grow(deadline(t), uid(1), i.Epoch, i.Session, 2*mib)
	if !errors.Is(err, volume.ErrFenced) {
		return err
	}
	if _, err := s.Open(deadline(t), opening(uid(1), i.Epoch, i.Session+1)); err != nil {
		return err
	}
	return s.Grow(deadline(t), uid(1), i.Epoch, i.Session+1, 2*mib)
}

func TestFileOperations(t *testing.T) {
	s, rec := recorded(t)
	for _, op := range operations {
		rec.Take()
		if err := op.run(t, s); err != nil {
			t.Fatalf("%s: %v", op.name, err)
		}
		got := strings.ReplaceAll(strings.Join(rec.Take(), "\n"), string(uid(1)), "UID")
		want := strings.ReplaceAll(strings.TrimSpace(op.golden), "\t", "")
		if got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", op.name, got, want)
		}
	}
}

// TestKilledAnywhere kills each operation at each of its file operations, starts
// again on what is on disk, and repeats it: it must succeed, and leave nothing
// over.
func TestKilledAnywhere(t *testing.T) {
	dir := pooltest.Mount(t, pooltest.DefaultImageBytes)
	for i, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			for n := 1; ; n++ {
				if n > 50 {
					t.Fatal("does not end")
				}
				if killedAt(t, dir, i, n) {
					break
				}
			}
		})
	}
}

// killedAt runs the operations before the i-th, kills that one at its n-th file
// operation, restarts and repeats. It reports whether the operation was over by
// then.
func killedAt(t *testing.T, dir string, i, n int) (over bool) {
	t.Helper()
	rec := &pooltest.Recorder{Root: dir}
	p := pooltest.Open(t, pool.Options{Name: "p", Path: dir, ReserveBytes: mib, FS: rec})
	s := newServer(t, Options{Pools: Pools(p)})
	for _, op := range operations[:i] {
		if err := op.run(t, s); err != nil {
			t.Fatal(err)
		}
	}
	rec.KillAt(n)
	err := operations[i].run(t, s)
	over = !rec.Killed()
	if over != (err == nil) {
		t.Fatalf("killed at %d: %v", n, err)
	}
	if err := errors.Join(s.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}

	p = pooltest.Open(t, pool.Options{Name: "p", Path: dir, ReserveBytes: mib})
	s = newServer(t, Options{Pools: Pools(p)})
	for _, info := range s.List() {
		if info.Failure != "" {
			t.Errorf("killed at %d: the replica is damaged: %s", n, info.Failure)
		}
	}
	if err := operations[i].run(t, s); err != nil && (!over || !errors.Is(err, volume.ErrFenced)) {
		t.Errorf("killed at %d, repeated: %v", n, err)
	}
	checkNothingOver(t, s, fmt.Sprintf("killed at %d, repeated", n))
	if err := errors.Join(s.Delete(deadline(t), vol, uid(1)), s.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	return over
}

func checkNothingOver(t *testing.T, s *Server, when string) {
	t.Helper()
	want := []string{}
	for _, info := range s.List() {
		want = append(want, string(info.UID))
		if got := entries(t, replicaDir(s, info.UID)); !slices.Equal(got, []string{"data.img", "meta.json", "regions.map"}) {
			t.Errorf("%s: a replica has %v", when, got)
		}
	}
	if got := entries(t, s.opts.Pools[0].ReplicasDir()); !slices.Equal(got, want) {
		t.Errorf("%s: there is %v, want %v", when, got, want)
	}
	var promised int64
	for _, info := range s.List() {
		promised += info.SizeBytes
	}
	if st, err := stats(s); err != nil || st.Promised != promised {
		t.Errorf("%s: %d bytes are promised for replicas of %d (%v)", when, st.Promised, promised, err)
	}
}

// TestNamesAreDurableBeforeTheyAreBelieved: a process that ended between a rename
// and the sync after it leaves a replica that a power loss would take away again.
func TestNamesAreDurableBeforeTheyAreBelieved(t *testing.T) {
	s, rec := recorded(t)
	create(t, s, uid(1), mib)
	rec.Take()
	restart(t, s)
	dir := string(uid(1))
	if got, want := rec.Take(), []string{"syncdir .", "syncdir " + dir}; !slices.Equal(got, want) {
		t.Errorf("a server that starts asks for %q, want %q", got, want)
	}
}

func TestDeleteIsRepeatable(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	ses := open(t, s, opening(uid(1), 1, 1))
	wantErr(t, "another volume's", s.Delete(deadline(t), other, uid(1)), volume.ErrInvalid)
	for range 3 {
		if err := s.Delete(deadline(t), vol, uid(1)); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "write to a deleted replica", block.WriteAt(ses, pattern(4096, 1), 0), volume.ErrFenced)
	wantErr(t, "climbing", s.Delete(deadline(t), vol, "../../x"), volume.ErrInvalid)
	checkNothingOver(t, s, "deleted")
	create(t, s, uid(1), 2*mib)
}

func TestGrow(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	wantErr(t, "closed", s.Grow(deadline(t), uid(1), 1, 1, 2*mib), volume.ErrFenced)
	ses := open(t, s, opening(uid(1), 1, 1))
	if err := block.WriteAt(ses, pattern(4096, 1), mib-4096); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name          string
		epoch         volume.Epoch
		session       volume.Session
		size, nowSize int64
		want          error
	}{
		{"odd", 1, 1, 2*mib + 1, mib, volume.ErrOutOfRange},
		{"negative", 1, 1, -1, mib, volume.ErrOutOfRange},
		{"another epoch", 2, 1, 2 * mib, mib, volume.ErrFenced},
		{"another session", 1, 2, 2 * mib, mib, volume.ErrFenced},
		{"more than the pool", 1, 1, 1 << 50, mib, volume.ErrNoSpace},
		{"grow", 1, 1, 2 * mib, 2 * mib, nil},
		{"repeated", 1, 1, 2 * mib, 2 * mib, nil},
		{"never shrinks", 1, 1, mib, 2 * mib, nil},
	}
	for _, step := range steps {
		err := s.Grow(deadline(t), uid(1), step.epoch, step.session, step.size)
		if !errors.Is(err, step.want) || ses.Size() != step.nowSize {
			t.Errorf("%s: got %v and %d bytes, want %v and %d", step.name, err, ses.Size(), step.want, step.nowSize)
		}
	}
	if err := block.WriteAt(ses, pattern(4096, 2), 2*mib-4096); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4096)
	if err := block.ReadAt(ses, got, mib-4096); err != nil || string(got) != string(pattern(4096, 1)) {
		t.Errorf("content before the growth is lost (%v)", err)
	}
	s = restart(t, s)
	if i, err := s.Get(uid(1)); err != nil || i.SizeBytes != 2*mib || i.Failure != "" {
		t.Errorf("after a restart: %+v (%v)", i, err)
	}
}

func TestDiscovery(t *testing.T) {
	s := newServer(t, Options{})
	create(t, s, uid(1), mib)
	create(t, s, uid(2), 2*mib)
	open(t, s, opening(uid(2), 7, 3))
	if err := os.WriteFile(filepath.Join(s.opts.Pools[0].ReplicasDir(), "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := s.List()
	s = restart(t, s)
	if after := s.List(); !slices.Equal(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if len(before) != 2 || before[1].Epoch != 7 || before[1].Session != 3 || before[1].SizeBytes != 2*mib || before[1].Volume != vol || before[1].Pool != "p" {
		t.Errorf("list %+v", before)
	}
	if st, err := stats(s); err != nil || st.Promised != 3*mib {
		t.Errorf("promised %d (%v)", st.Promised, err)
	}
}
