package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Node plays kubelet on one node. One pod at a time uses a volume there.
type Node struct {
	Name   string
	Socket string // the node plugin's
	Root   string // as /var/lib/kubelet

	mu     sync.Mutex
	staged map[string]Volume // by ID; from the first attempt on. Guarded by mu.
}

// Call makes any call, with kubelet's deadline.
func (n *Node) Call(ctx context.Context, do func(context.Context, csipb.NodeClient) error) error {
	return call(ctx, n.Socket, NodeTimeout, func(ctx context.Context, conn *grpc.ClientConn) error {
		return do(ctx, csipb.NewNodeClient(conn))
	})
}

// StagingPath is where a volume is staged: a directory that kubelet makes.
func (n *Node) StagingPath(v Volume) string {
	if v.Spec.Block {
		return filepath.Join(n.Root, "plugins/kubernetes.io/csi/volumeDevices/staging", v.ID)
	}
	return filepath.Join(n.Root, "plugins/kubernetes.io/csi/holdfast.io", v.ID, "globalmount")
}

// TargetPath is where the pod gets it: a directory, or a device file. kubelet
// makes its parent only.
func (n *Node) TargetPath(v Volume) string {
	if v.Spec.Block {
		return filepath.Join(n.Root, "plugins/kubernetes.io/csi/volumeDevices/publish", v.ID, "pod")
	}
	return filepath.Join(n.Root, "pods/pod/volumes/kubernetes.io~csi", v.ID, "mount")
}

// Stage makes NodeStageVolume.
func (n *Node) Stage(ctx context.Context, v Volume) error {
	path := n.StagingPath(v)
	if err := makeDir(path); err != nil {
		return err
	}
	n.note(v)
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		_, err := c.NodeStageVolume(ctx, &csipb.NodeStageVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: path, VolumeCapability: v.Spec.Capability(),
		})
		return err
	})
	if err == nil {
		return nil
	}
	if final(err) { // kubelet forgets it, and never calls NodeUnstageVolume
		n.forget(v)
		_ = os.Remove(path) // not empty if something is left, which Leftovers finds
	}
	return fmt.Errorf("NodeStageVolume %s on %s: %w", v.Spec.Name, n.Name, err)
}

// makeDir makes a directory. A filesystem that is dead (its calls fail with EIO or
// the like) is taken for one, as kubelet does: staging repairs it.
func makeDir(path string) error {
	err := os.MkdirAll(path, 0o750)
	if err == nil {
		return nil
	}
	if _, statErr := os.Stat(path); statErr != nil && !errors.Is(statErr, os.ErrNotExist) {
		return nil
	}
	return err
}

// final says whether kubelet takes an error as: nothing was done. It is kubelet's
// own list of those that are not.
func final(err error) bool {
	return !slices.Contains([]codes.Code{
		codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted,
	}, Code(err))
}

func (n *Node) note(v Volume) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.staged == nil {
		n.staged = map[string]Volume{}
	}
	n.staged[v.ID] = v
}

func (n *Node) forget(v Volume) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.staged, v.ID)
}

// Unstage makes NodeUnstageVolume.
func (n *Node) Unstage(ctx context.Context, v Volume) error {
	path := n.StagingPath(v)
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		_, err := c.NodeUnstageVolume(ctx, &csipb.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: path})
		return err
	})
	if err != nil {
		return fmt.Errorf("NodeUnstageVolume %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	n.forget(v)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Publish makes NodePublishVolume and returns the pod's path.
func (n *Node) Publish(ctx context.Context, v Volume) (string, error) {
	target := n.TargetPath(v)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", err
	}
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		_, err := c.NodePublishVolume(ctx, &csipb.NodePublishVolumeRequest{
			VolumeId: v.ID, StagingTargetPath: n.StagingPath(v), TargetPath: target, VolumeCapability: v.Spec.Capability(),
		})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("NodePublishVolume %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	return target, nil
}

// Unpublish makes NodeUnpublishVolume.
func (n *Node) Unpublish(ctx context.Context, v Volume) error {
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		_, err := c.NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: n.TargetPath(v)})
		return err
	})
	if err != nil {
		return fmt.Errorf("NodeUnpublishVolume %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	return nil
}

// Attach stages and publishes, and returns the pod's path.
func (n *Node) Attach(ctx context.Context, v Volume) (string, error) {
	if err := n.Stage(ctx, v); err != nil {
		return "", err
	}
	return n.Publish(ctx, v)
}

// Detach unpublishes and unstages.
func (n *Node) Detach(ctx context.Context, v Volume) error {
	if err := n.Unpublish(ctx, v); err != nil {
		return err
	}
	return n.Unstage(ctx, v)
}

// Drain detaches everything that is still staged here.
func (n *Node) Drain(ctx context.Context) error {
	n.mu.Lock()
	volumes := slices.Collect(maps.Values(n.staged))
	n.mu.Unlock()
	var errs []error
	for _, v := range volumes {
		errs = append(errs, n.Detach(ctx, v))
	}
	return errors.Join(errs...)
}

// Expand makes NodeExpandVolume on the pod's path and returns the size in bytes.
func (n *Node) Expand(ctx context.Context, v Volume, size int64) (int64, error) {
	var got int64
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		resp, err := c.NodeExpandVolume(ctx, &csipb.NodeExpandVolumeRequest{
			VolumeId: v.ID, VolumePath: n.TargetPath(v), StagingTargetPath: n.StagingPath(v),
			CapacityRange: &csipb.CapacityRange{RequiredBytes: size}, VolumeCapability: v.Spec.Capability(),
		})
		got = resp.GetCapacityBytes()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("NodeExpandVolume %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	return got, nil
}

// Stats makes NodeGetVolumeStats on the pod's path: usage by unit.
func (n *Node) Stats(ctx context.Context, v Volume) (map[csipb.VolumeUsage_Unit]*csipb.VolumeUsage, error) {
	usage := map[csipb.VolumeUsage_Unit]*csipb.VolumeUsage{}
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		resp, err := c.NodeGetVolumeStats(ctx, &csipb.NodeGetVolumeStatsRequest{VolumeId: v.ID, VolumePath: n.TargetPath(v)})
		for _, u := range resp.GetUsage() {
			usage[u.GetUnit()] = u
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("NodeGetVolumeStats %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	return usage, nil
}

// Health makes NodeGetVolumeHealth: what is wrong with the volume, seen from here.
func (n *Node) Health(ctx context.Context, v Volume) ([]*csipb.VolumeHealth_VolumeHealthEntry, error) {
	var list []*csipb.VolumeHealth_VolumeHealthEntry
	err := n.Call(ctx, func(ctx context.Context, c csipb.NodeClient) error {
		resp, err := c.NodeGetVolumeHealth(ctx, &csipb.NodeGetVolumeHealthRequest{
			VolumeId: v.ID, StagingTargetPath: n.StagingPath(v), VolumePublishPath: n.TargetPath(v),
		})
		list = resp.GetVolumeHealth().GetHealthStatuses()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("NodeGetVolumeHealth %s on %s: %w", v.Spec.Name, n.Name, err)
	}
	return list, nil
}
