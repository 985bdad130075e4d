package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

const (
	testTimeout    = 4 * time.Minute
	cleanupTimeout = 2 * time.Minute
	lease          = "3s"
	legTimeout     = "3s"
	gib            = int64(1) << 30
	// usual is the size of a volume whose size doesn't matter: little more than
	// xfs needs, because rebuilding takes time.
	usual = int64(400) << 20
)

// scratch holds everything of this run; built are the commands.
var (
	scratch string
	built   = sync.OnceValues(func() (string, error) { return kubelet.Build(context.Background(), filepath.Join(scratch, "bin")) })
	// theCluster is what most tests share: each leaves it as it was.
	theCluster = sync.OnceValues(func() (*kubelet.Standalone, error) {
		bin, err := built()
		if err != nil {
			return nil, err
		}
		return kubelet.Start(context.Background(), kubelet.Options{
			Bin: bin, Dir: filepath.Join(scratch, "s"), PoolSize: "3Gi", Lease: lease, LegTimeout: legTimeout,
		})
	})
	started *kubelet.Standalone // theCluster, once a test wanted it
)

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

// runTests makes sure that nothing is left, whatever the tests did.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hfi")
	if err == nil {
		scratch, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := clearScratch(); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	return code
}

func clearScratch() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if started != nil {
		if err := started.Stop(ctx); err != nil {
			return err
		}
	}
	if err := nothingBut(scratch); err != nil {
		return err
	}
	return os.RemoveAll(scratch)
}

// nothingBut says what is left of a directory besides its files.
func nothingBut(dir string) error {
	left, err := kubelet.Leftovers(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range left {
		if !strings.HasPrefix(l, "directory ") {
			errs = append(errs, errors.New("left behind: "+l))
		}
	}
	return errors.Join(errs...)
}

// world is one test's view of a standalone.
type world struct {
	*kubelet.Standalone
	t       *testing.T
	ctx     context.Context
	volumes *[]kubelet.Volume // to be deleted at the end
}

// in is the same world for a subtest.
func (w *world) in(t *testing.T) *world {
	return &world{Standalone: w.Standalone, t: t, ctx: w.ctx, volumes: w.volumes}
}

// shared returns the standalone that most tests share. What the test does to it
// is undone at its end: processes run, nothing is staged, its volumes are gone.
func shared(t *testing.T) *world {
	t.Helper()
	if missing := kubelet.Missing(); missing != "" {
		t.Skip(missing)
	}
	s, err := theCluster()
	if err != nil {
		t.Fatal(err)
	}
	started = s
	w := newWorld(t, s)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		w.logs()
		w.restore(ctx)
	})
	return w
}

// own starts a standalone for one test.
func own(t *testing.T, o kubelet.Options) *world {
	t.Helper()
	if missing := kubelet.Missing(); missing != "" {
		t.Skip(missing)
	}
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(scratch, "o")
	if err != nil {
		t.Fatal(err)
	}
	o.Bin, o.Dir, o.Lease, o.LegTimeout = bin, dir, lease, legTimeout
	s, err := kubelet.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, s)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		w.logs()
		if err := w.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := nothingBut(dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

func newWorld(t *testing.T, s *kubelet.Standalone) *world {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return &world{Standalone: s, t: t, ctx: ctx, volumes: &[]kubelet.Volume{}}
}

func (w *world) logs() {
	if w.t.Failed() {
		w.t.Log(w.Tails(40))
	}
}

func (w *world) restore(ctx context.Context) {
	w.check("heal", w.Heal(ctx))
	for _, n := range w.Nodes() {
		w.check("drain "+n.Name, kubelet.Persist(ctx, "drain", n.Drain))
	}
	for _, v := range *w.volumes {
		w.check("delete "+v.Spec.Name, kubelet.Persist(ctx, "delete", func(ctx context.Context) error { return w.Controller().Delete(ctx, v) }))
	}
	w.check("collect", kubelet.Await(ctx, "all replicas to be gone", func(context.Context) error { return w.noReplicas(*w.volumes) }))
}

// noReplicas says which of these volumes have a replica on a disk. Others may be
// there: of tests that failed.
func (w *world) noReplicas(volumes []kubelet.Volume) error {
	for _, v := range volumes {
		metas, err := filepath.Glob(filepath.Join(w.Dir(), "*", "pool", "replicas", "*", "meta.json"))
		if err != nil {
			return err
		}
		for _, m := range metas {
			if b, err := os.ReadFile(m); err == nil && strings.Contains(string(b), v.ID) {
				return fmt.Errorf("volume %s still has %s", v.Spec.Name, m)
			}
		}
	}
	return nil
}

func (w *world) check(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}

// must ends the test on an error.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// create makes a volume that is named after the test.
func (w *world) create(s kubelet.Spec) kubelet.Volume {
	w.t.Helper()
	s.Name = strings.ReplaceAll(w.t.Name(), "/", "-") + s.Name
	v, err := w.Controller().Create(w.ctx, s)
	w.must(err)
	*w.volumes = append(*w.volumes, v)
	return v
}

func (w *world) attach(node string, v kubelet.Volume) string {
	w.t.Helper()
	path, err := w.Node(node).Attach(w.ctx, v)
	w.must(err)
	return path
}

func (w *world) do(verb, process string) {
	w.t.Helper()
	w.must(w.Do(w.ctx, verb, process))
}

// freeze stops a process with SIGSTOP. It goes on with thaw, or when the test
// ends.
func (w *world) freeze(process string) (thaw func()) {
	w.t.Helper()
	procs, err := w.Processes(w.ctx)
	w.must(err)
	for _, p := range procs {
		if p.Name != process {
			continue
		}
		w.must(syscall.Kill(p.PID, syscall.SIGSTOP))
		thaw = sync.OnceFunc(func() { w.check("thaw "+process, syscall.Kill(p.PID, syscall.SIGCONT)) })
		w.t.Cleanup(thaw)
		return thaw
	}
	w.t.Fatalf("no process %s", process)
	return nil
}

// object is the store's object.
func (w *world) object(v kubelet.Volume) volume.Volume {
	w.t.Helper()
	o, err := w.Volume(w.ctx, v)
	w.must(err)
	return o
}

// awaitReplica waits for the state of a node's replica.
func (w *world) awaitReplica(v kubelet.Volume, node string, state volume.ReplicaState) {
	w.t.Helper()
	w.must(kubelet.Await(w.ctx, fmt.Sprintf("the replica on %s to be %s", node, state), func(ctx context.Context) error {
		o, err := w.Volume(ctx, v)
		if err != nil {
			return err
		}
		i := o.ReplicaOn(volume.NodeID(node))
		if i < 0 {
			return errors.New("there is none")
		}
		if r := o.Status.Replicas[i]; r.State != state {
			return fmt.Errorf("it is %s (%s)", r.State, r.Reason)
		}
		return nil
	}))
}

// awaitInSync waits until every replica is InSync.
func (w *world) awaitInSync(v kubelet.Volume) {
	w.t.Helper()
	for _, r := range w.object(v).Status.Replicas {
		w.awaitReplica(v, string(r.Node), volume.InSync)
	}
}

// awaitLog waits until a process has logged text that it had not before.
func (w *world) awaitLog(process, text string, before int) {
	w.t.Helper()
	w.must(kubelet.Await(w.ctx, fmt.Sprintf("%q in the log of %s", text, process), func(context.Context) error {
		if w.logged(process, text) <= before {
			return errors.New("not there")
		}
		return nil
	}))
}

func (w *world) logged(process, text string) int {
	b, err := os.ReadFile(filepath.Join(w.Dir(), process, "log"))
	w.must(err)
	return strings.Count(string(b), text)
}

// write starts a writer and waits until it has flushed something.
func (w *world) write(o workload.WriterOptions) *workload.Writer {
	w.t.Helper()
	writer, err := workload.StartWriter(o)
	w.must(err)
	w.t.Cleanup(func() { writer.Stop() })
	w.awaitSynced(writer)
	return writer
}

// awaitSynced waits until a writer has flushed some more.
func (w *world) awaitSynced(writer *workload.Writer) {
	w.t.Helper()
	goal := writer.Progress().Synced + 20
	w.must(kubelet.Await(w.ctx, "the writer to go on", func(context.Context) error {
		if p := writer.Progress(); p.Err == nil && p.Synced < goal {
			return fmt.Errorf("%d records flushed", p.Synced)
		}
		return nil
	}))
	w.must(writer.Progress().Err)
}

// ring is a writer's ring at path.
func ring(path string) workload.WriterOptions {
	return workload.WriterOptions{Path: path, Records: 1024, SyncEvery: 4, Interval: time.Millisecond}
}

// kind is one way to use a volume.
type kind struct {
	name string
	spec kubelet.Spec
	// at is where the writer writes, below the path that the pod has.
	at func(path string) string
}

var kinds = []kind{
	{"filesystem", kubelet.Spec{FSType: "xfs"}, func(path string) string { return filepath.Join(path, "log") }},
	{"block", kubelet.Spec{Block: true}, func(path string) string { return path }},
}

func replicas(n string) map[string]string { return map[string]string{"replicas": n} }
