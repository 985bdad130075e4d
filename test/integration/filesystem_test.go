package integration

import (
	"os/exec"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// Every filesystem lives on a mirrored volume, grows, and moves to another node.
func TestFilesystems(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			if _, err := exec.LookPath("mkfs." + fs); err != nil {
				t.Skipf("needs mkfs.%s (Debian: xfsprogs, e2fsprogs, btrfs-progs)", fs)
			}
			w := shared(t)
			v := w.create(kubelet.Spec{FSType: fs, SizeBytes: gib / 2, Params: replicas("2")})
			path := w.attach("n1", v)
			set, err := workload.WriteFiles(w.ctx, path, 9, 8, 32<<20)
			w.must(err)
			w.must(w.Node("n1").Detach(w.ctx, v))

			// Grown while nobody uses it: the next staging grows the filesystem.
			_, err = w.Controller().Expand(w.ctx, v, gib)
			w.must(err)
			path = w.attach("n3", v)
			w.must(set.Verify(w.ctx, path))
			usage, err := w.Node("n3").Stats(w.ctx, v)
			w.must(err)
			if total := usage[csipb.VolumeUsage_BYTES].GetTotal(); total < gib*85/100 {
				t.Errorf("%s shows %d bytes of a volume of %d", fs, total, gib)
			}
		})
	}
}
