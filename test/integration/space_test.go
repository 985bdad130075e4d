package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

func TestTrimGivesSpaceBack(t *testing.T) {
	if _, err := exec.LookPath("fstrim"); err != nil {
		t.Skip("needs fstrim (Debian: util-linux)")
	}
	const written = 192 << 20
	w := shared(t)
	v := w.create(kubelet.Spec{SizeBytes: gib, Params: replicas("3")})
	path := w.attach("n1", v)
	empty := w.allocated(v)
	set, err := workload.WriteFiles(w.ctx, path, 5, 3, written)
	w.must(err)
	full := w.allocated(v)
	free := w.free()
	for node, n := range full {
		if n-empty[node] < written*9/10 {
			t.Errorf("%s has %d bytes more after %d were written", node, n-empty[node], written)
		}
	}
	for _, f := range set {
		w.must(os.Remove(filepath.Join(path, f.Name)))
	}
	// xfs frees what was removed in the background, and trims what is free by then.
	w.must(kubelet.Await(w.ctx, "the space", func(ctx context.Context) error {
		w.must(syncFilesystem(path))
		if out, err := exec.CommandContext(ctx, "fstrim", path).CombinedOutput(); err != nil {
			return fmt.Errorf("fstrim: %w: %s", err, out)
		}
		for node, n := range w.allocated(v) {
			if full[node]-n < written*9/10 {
				return fmt.Errorf("%s gave back %d of %d bytes", node, full[node]-n, written)
			}
		}
		for node, n := range w.free() {
			if n-free[node] < written*9/10 {
				return fmt.Errorf("the pool of %s has only %d bytes more", node, n-free[node])
			}
		}
		return nil
	}))
}

func syncFilesystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// allocated is the bytes that each replica takes on its disk.
func (w *world) allocated(v kubelet.Volume) map[string]int64 {
	o := w.object(v)
	bytes := map[string]int64{}
	for _, r := range o.Status.Replicas {
		var st unix.Stat_t
		w.must(unix.Stat(w.Image(o, r.Node), &st))
		bytes[string(r.Node)] = st.Blocks * 512
	}
	return bytes
}

// free is the bytes free in each node's pool.
func (w *world) free() map[string]int64 {
	bytes := map[string]int64{}
	for _, n := range w.Nodes() {
		var st unix.Statfs_t
		w.must(unix.Statfs(w.PoolPath(n.Name), &st))
		bytes[n.Name] = int64(st.Bavail) * st.Bsize
	}
	return bytes
}

func TestFullPool(t *testing.T) {
	w := own(t, kubelet.Options{PoolSize: "1Gi"})
	t.Run("at create", func(t *testing.T) { w.in(t).overbook() })
	t.Run("during writes", func(t *testing.T) { w.in(t).fillUp() })
}

// overbook asks for more than the pools may promise, and then for more than they
// could ever hold.
func (w *world) overbook() {
	v := w.create(kubelet.Spec{Name: "-first", Block: true, SizeBytes: gib, Params: replicas("3")})
	for _, tc := range []struct {
		size int64
		code codes.Code
	}{
		{gib, codes.ResourceExhausted},
		{64 * gib, codes.OutOfRange},
	} {
		name := fmt.Sprintf("too-large-%d", tc.size)
		_, err := w.Controller().Create(w.ctx, kubelet.Spec{Name: name, Block: true, SizeBytes: tc.size, Params: replicas("3")})
		w.expect(err, tc.code, "n1")
		w.must(w.noReplicas([]kubelet.Volume{{ID: string(volume.IDFor(name))}}))
	}
	w.must(w.Controller().Delete(w.ctx, v))
}

// fillUp writes more than there is room for: the writes wait, until deleting
// another volume gives space back.
func (w *world) fillUp() {
	filler := w.create(kubelet.Spec{Name: "filler", Block: true, SizeBytes: 512 << 20, Params: replicas("3")})
	w.must(workload.Pattern{Seed: 1, Bytes: 400 << 20}.Write(w.ctx, w.attach("n2", filler)))
	w.must(w.Node("n2").Detach(w.ctx, filler))

	v := w.create(kubelet.Spec{Name: "writer", Block: true, SizeBytes: gib, Params: replicas("3")})
	path := w.attach("n1", v)
	pattern := workload.Pattern{Seed: 2, Bytes: 640 << 20}
	written := make(chan error, 1)
	go func() { written <- pattern.Write(w.ctx, path) }()

	w.must(kubelet.Await(w.ctx, "the condition that writes wait", func(ctx context.Context) error {
		select {
		case err := <-written:
			written <- err
			return nil
		default:
		}
		return w.says(ctx, v, "PoolFull")
	}))
	select {
	case err := <-written:
		w.t.Fatalf("the writes did not wait: %v", err)
	case <-time.After(2 * time.Second): // they wait, and go on waiting
	}
	w.t.Log("writes wait; deleting the filler")
	w.must(w.Controller().Delete(w.ctx, filler))
	w.must(<-written)
	w.must(pattern.Verify(w.ctx, path))
	w.must(kubelet.Await(w.ctx, "the condition to go", func(ctx context.Context) error {
		if w.says(ctx, v, "PoolFull") == nil {
			return errors.New("it is still there")
		}
		return nil
	}))
	for _, r := range w.object(v).Status.Replicas {
		if r.State != volume.InSync {
			w.t.Errorf("the replica on %s is %s (%s)", r.Node, r.State, r.Reason)
		}
	}
	w.must(w.Node("n1").Detach(w.ctx, v))
	w.must(pattern.Verify(w.ctx, w.attach("n2", v)))
}

// says is nil when the volume's health has an entry with the reason.
func (w *world) says(ctx context.Context, v kubelet.Volume, reason string) error {
	health, err := w.Controller().Health(ctx, v)
	if err != nil {
		return err
	}
	var all []string
	for _, h := range health {
		if h.GetReason() == reason {
			return nil
		}
		all = append(all, h.GetReason())
	}
	return fmt.Errorf("the health says %s", strings.Join(all, ", "))
}
