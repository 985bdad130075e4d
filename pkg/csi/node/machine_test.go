package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// machine is a Service on the real host, over loop devices.
type machine struct {
	t               *testing.T
	attacher        *loopAttacher
	service         *Service
	staging, target string
	kubelet         string
}

func newMachine(t *testing.T, programs ...string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems")
	}
	for _, p := range append(programs, "losetup", "mount", "blkid") {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
	if err := exec.Command("losetup", "--find").Run(); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	m := &machine{t: t, attacher: newLoopAttacher(t)}
	m.kubelet = filepath.Join(t.TempDir(), "kubelet")
	m.staging = filepath.Join(m.kubelet, "staging dir")
	m.target = filepath.Join(m.kubelet, "pod", "mount")
	if err := errors.Join(os.MkdirAll(m.staging, 0o755), os.MkdirAll(filepath.Dir(m.target), 0o755)); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	h, err := host.New(host.Options{ScratchDir: filepath.Join(state, "scratch")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.unmountAll(h) }) // before the attacher's own cleanup
	m.service, err = New(t.Context(), Options{Attacher: m.attacher, Host: h, StateDir: state, KubeletDir: m.kubelet})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) unmountAll(h *host.Host) {
	ctx := context.Background()
	for _, path := range []string{m.target, m.staging} {
		for range 4 {
			if p, err := h.Inspect(ctx, path); err == nil && p.Kind == host.KindMount {
				if err := h.UnmountLazily(ctx, path); err != nil {
					m.t.Error(err)
				}
			}
		}
	}
}

func (m *machine) context() context.Context {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	m.t.Cleanup(cancel)
	return ctx
}

func (m *machine) stage(id volume.ID, c *csipb.VolumeCapability) error {
	_, err := m.service.NodeStageVolume(m.context(), &csipb.NodeStageVolumeRequest{
		VolumeId: string(id), StagingTargetPath: m.staging, VolumeCapability: c,
	})
	return err
}

func (m *machine) unstage(id volume.ID) error {
	_, err := m.service.NodeUnstageVolume(m.context(), &csipb.NodeUnstageVolumeRequest{VolumeId: string(id), StagingTargetPath: m.staging})
	return err
}

func (m *machine) publish(id volume.ID, c *csipb.VolumeCapability) error {
	_, err := m.service.NodePublishVolume(m.context(), &csipb.NodePublishVolumeRequest{
		VolumeId: string(id), StagingTargetPath: m.staging, TargetPath: m.target, VolumeCapability: c,
	})
	return err
}

func (m *machine) unpublish(id volume.ID) error {
	_, err := m.service.NodeUnpublishVolume(m.context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: string(id), TargetPath: m.target})
	return err
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) create(spec volume.Spec) volume.ID {
	m.t.Helper()
	v, err := m.attacher.create(spec)
	m.must(err)
	return v.ID
}

func TestRealFilesystems(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			m := newMachine(t, "mkfs."+fsType)
			id := m.create(volume.Spec{Name: fsType, SizeBytes: 320 << 20, FSType: fsType, Params: volume.Params{MkfsOptions: "-L label"}})
			m.must(m.stage(id, mountCap(fsType, "noatime")))
			m.must(m.stage(id, mountCap(fsType, "noatime")))
			m.must(m.publish(id, mountCap(fsType, "noatime")))
			m.must(m.publish(id, mountCap(fsType, "noatime")))
			file := filepath.Join(m.target, "file")
			m.must(os.WriteFile(file, []byte("kept"), 0o600))
			m.growReal(id, fsType)
			if err := m.unstage(id); codeOf(err) != codes.FailedPrecondition {
				t.Errorf("unstage while published: %v", err)
			}
			m.must(m.unpublish(id))
			m.must(m.unpublish(id))
			m.must(m.unstage(id))
			m.must(m.unstage(id))
			m.attacher.expand(id, 800<<20) // grows at the next staging
			m.must(m.stage(id, mountCap("")))
			m.must(m.publish(id, mountCap("")))
			if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
				t.Errorf("%q, %v", text, err)
			}
			if total := m.totalBytes(id); total < 700<<20 {
				t.Errorf("the filesystem has %d bytes", total)
			}
			m.must(m.unpublish(id))
			m.must(m.unstage(id))
			if len(m.attacher.attached) > 0 {
				t.Error("still attached")
			}
		})
	}
}

// growReal expands to 512 MiB online, where the kernel allows it.
func (m *machine) growReal(id volume.ID, fsType string) {
	m.t.Helper()
	m.attacher.expand(id, 512<<20)
	resp, err := m.service.NodeExpandVolume(m.context(), &csipb.NodeExpandVolumeRequest{VolumeId: string(id), VolumePath: m.target})
	if fsType == "ext4" && codeOf(err) == codes.FailedPrecondition {
		m.t.Logf("online growth of ext4 is not possible here: %v", err)
		return
	}
	m.must(err)
	if total := m.totalBytes(id); resp.GetCapacityBytes() != 512<<20 || total < 400<<20 {
		m.t.Errorf("capacity %d, filesystem of %d bytes", resp.GetCapacityBytes(), total)
	}
}

func (m *machine) totalBytes(id volume.ID) int64 {
	m.t.Helper()
	resp, err := m.service.NodeGetVolumeStats(m.context(), &csipb.NodeGetVolumeStatsRequest{VolumeId: string(id), VolumePath: m.target})
	m.must(err)
	return resp.GetUsage()[0].GetTotal()
}

func TestRealBlockDevice(t *testing.T) {
	m := newMachine(t)
	id := m.create(volume.Spec{Name: "block", SizeBytes: 8 << 20, Block: true})
	want := bytes.Repeat([]byte("holdfast"), 1<<17)
	for round := range 2 {
		m.must(m.stage(id, blockCap()))
		m.must(m.publish(id, blockCap()))
		m.must(m.publish(id, blockCap()))
		f, err := os.OpenFile(m.target, os.O_RDWR, 0)
		m.must(err)
		if round == 0 {
			_, err = f.WriteAt(want, 1<<20)
			m.must(err)
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Errorf("round %d: read something else, %v", round, err)
		}
		m.attacher.expand(id, 16<<20)
		if _, err := m.service.NodeExpandVolume(m.context(), &csipb.NodeExpandVolumeRequest{VolumeId: string(id), VolumePath: m.target}); err != nil {
			t.Error(err)
		}
		if size, err := f.Seek(0, io.SeekEnd); err != nil || size != 16<<20 {
			t.Errorf("size %d, %v", size, err)
		}
		m.must(f.Close())
		m.must(m.unpublish(id))
		if _, err := os.Lstat(m.target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target is left: %v", err)
		}
		m.must(m.unstage(id))
	}
	reader := inMode(blockCap(), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)
	m.must(m.stage(id, reader))
	m.must(m.publish(id, reader))
	if f, err := os.OpenFile(m.target, os.O_WRONLY, 0); err == nil {
		_, err = f.Write(want)
		if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
			t.Error("a read-only block volume was written")
		}
	}
	m.must(m.unpublish(id))
	m.must(m.unstage(id))
}

// TestMountInAnotherNamespace keeps the volume mounted where /proc/self/mountinfo
// doesn't show it. Unstage must not take the device from under it.
func TestMountInAnotherNamespace(t *testing.T) {
	m := newMachine(t, "mkfs.ext4", "unshare")
	id := m.create(volume.Spec{Name: "v", SizeBytes: 32 << 20, FSType: "ext4"})
	m.service.settleTimeout = 300 * time.Millisecond
	m.must(m.stage(id, mountCap("")))
	// The namespace is a copy, with the mount in it, and private.
	keeper := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read end")
	in, err := keeper.StdinPipe()
	m.must(err)
	out, err := keeper.StdoutPipe()
	m.must(err)
	if err := keeper.Start(); err != nil {
		t.Skipf("needs a mount namespace: %v", err)
	}
	release := func() { _ = errors.Join(in.Close(), keeper.Wait()) }
	t.Cleanup(release)
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Skipf("needs a mount namespace: %v", err)
	}
	if err := m.unstage(id); codeOf(err) != codes.FailedPrecondition {
		t.Errorf("unstage while mounted elsewhere: %v", err)
	}
	if _, attached := m.attacher.Get(id); !attached {
		t.Error("the device was taken from under a mounted filesystem")
	}
	release()
	m.must(m.unstage(id))
}

func TestRealDataIsNeverFormatted(t *testing.T) {
	m := newMachine(t, "mkfs.ext4", "mkfs.xfs")
	id := m.create(volume.Spec{Name: "v", SizeBytes: 320 << 20, FSType: "xfs"})
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", m.attacher.file(id)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := m.stage(id, mountCap("")); codeOf(err) != codes.FailedPrecondition {
		t.Errorf("a volume with another filesystem: %v", err)
	}
	m.must(m.attacher.SetFormat(t.Context(), id, volume.Format{State: volume.FormatDone, FSType: "xfs"}))
	if err := m.stage(id, mountCap("")); codeOf(err) != codes.DataLoss {
		t.Errorf("a formatted volume with another filesystem: %v", err)
	}
	m.must(os.Truncate(m.attacher.file(id), 0))
	m.must(os.Truncate(m.attacher.file(id), 320<<20))
	if err := m.stage(id, mountCap("")); codeOf(err) != codes.DataLoss {
		t.Errorf("a formatted volume that reads blank: %v", err)
	}
	if len(m.attacher.attached) > 0 {
		t.Error("still attached")
	}
}
