package node

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/attach"
	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Attacher makes volumes appear as block devices on this node. Package attach has
// the implementation. Every method takes its deadline from ctx, may be repeated,
// and returns errors that wrap the sentinels of package volume.
type Attacher interface {
	// Attach takes the volume's lock, opens it and exports it. It waits for a
	// live holder's release until shortly before ctx's deadline, then returns
	// ErrHeld with the holder's name. It leaves nothing behind on error.
	Attach(context.Context, volume.ID) (attach.Attachment, error)
	// Detach releases everything; nil when the volume is not attached.
	Detach(context.Context, volume.ID) error
	// Get tells what is attached here.
	Get(volume.ID) (attach.Attachment, bool)
	// Volume returns the store's object, or ErrNotFound.
	Volume(context.Context, volume.ID) (volume.Volume, error)
	// SetFormat records the state of the filesystem in the store, under the
	// epoch that this node holds.
	SetFormat(context.Context, volume.ID, volume.Format) error
	// SetCondition records a condition of the volume in the store, under the
	// epoch that this node holds.
	SetCondition(context.Context, volume.ID, volume.Condition) error
	// Grow waits until the device has at least size bytes and returns its size.
	Grow(ctx context.Context, id volume.ID, size int64) (int64, error)
	// Health tells what is wrong with a volume, from this node's view too.
	Health(context.Context, volume.ID) (attach.Health, error)
	// Pools tells about this node's pools.
	Pools(context.Context) ([]volume.Pool, error)
	// Node is this node's object.
	Node() volume.Node
	// Ready is nil when calls can be served; ErrUnavailable: not now.
	Ready(context.Context) error
}

// Host is the machine; *host.Host has the contracts of the methods.
type Host interface {
	Inspect(ctx context.Context, path string) (host.Path, error)
	MountsOf(ctx context.Context, device string) ([]host.MountPoint, error)
	Mount(context.Context, host.MountOptions) error
	Bind(context.Context, host.BindOptions) error
	Rebind(context.Context, host.BindOptions) error
	Unmount(ctx context.Context, path string) error
	UnmountLazily(ctx context.Context, path string) error
	MakeDir(path string) error
	MakeFile(path string) error
	Remove(path string) error

	Content(ctx context.Context, device string) (host.Content, error)
	CheckMountable(ctx context.Context, device, fsType string) error
	Format(context.Context, host.FormatOptions) error
	Grow(context.Context, host.GrowOptions) error
	GrowUnmounted(ctx context.Context, device string) error

	Alive(ctx context.Context, path string) error
	Usage(ctx context.Context, path string) (host.Usage, error)
	DeviceSize(ctx context.Context, device string) (int64, error)
	SetAccess(ctx context.Context, device string, a host.Access) error
	Sync(ctx context.Context, device string) error
	InUse(ctx context.Context, device string) (bool, error)

	Sweep(context.Context) error
}

// Options configure a Service.
type Options struct {
	Attacher Attacher
	Host     Host
	// StateDir is a directory of this service alone; it is created.
	StateDir string
	// KubeletDir is the directory in which all staging and target paths must
	// lie; "" means anywhere.
	KubeletDir string
	Logger     *slog.Logger // nil: none
}

// Service is the CSI Node service.
type Service struct {
	csipb.UnimplementedNodeServer
	attacher   Attacher
	host       Host
	records    records
	kubeletDir string
	log        *slog.Logger
	locks      csi.Locks

	settleTimeout time.Duration
}

// New makes a Service. What an earlier process staged is still known to it; what
// that left half-done on the host is swept away.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.KubeletDir != "" && (!filepath.IsAbs(o.KubeletDir) || filepath.Clean(o.KubeletDir) != o.KubeletDir) {
		return nil, volume.Invalid("kubelet-dir", o.KubeletDir, "an absolute path without '.', '..' and trailing '/'")
	}
	r, err := openRecords(filepath.Join(o.StateDir, "staged"), o.Logger)
	if err != nil {
		return nil, err
	}
	if err := o.Host.Sweep(ctx); err != nil {
		return nil, err
	}
	return &Service{
		attacher: o.Attacher, host: o.Host, records: r, kubeletDir: o.KubeletDir, log: o.Logger,
		settleTimeout: settleTimeout,
	}, nil
}

// undoTimeout bounds the undoing of a failed staging, whose own deadline may
// have passed.
const undoTimeout = 30 * time.Second

var nodeCapabilities = []csipb.NodeServiceCapability_RPC_Type{
	csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	csipb.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	csipb.NodeServiceCapability_RPC_EXPAND_VOLUME,
	csipb.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csipb.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	csipb.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
}

// NodeGetCapabilities lists what the service implements. VOLUME_MOUNT_GROUP is
// not among it: kubelet would then leave out its own change of ownership.
func (*Service) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	resp := &csipb.NodeGetCapabilitiesResponse{}
	for _, t := range nodeCapabilities {
		resp.Capabilities = append(resp.Capabilities, &csipb.NodeServiceCapability{
			Type: &csipb.NodeServiceCapability_Rpc{Rpc: &csipb.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo names the node, its place and how many volumes it takes. The number
// is for the orchestrator, which by the specification sees to it that no more are
// published here; this service doesn't count, and stages what it is told to.
func (s *Service) NodeGetInfo(context.Context, *csipb.NodeGetInfoRequest) (*csipb.NodeGetInfoResponse, error) {
	n := s.attacher.Node()
	return &csipb.NodeGetInfoResponse{
		NodeId:             string(n.ID),
		MaxVolumesPerNode:  max(0, n.MaxVolumes),
		AccessibleTopology: &csipb.Topology{Segments: n.Topology},
	}, nil
}

// volume returns the store's object of a volume that can be staged.
func (s *Service) volume(ctx context.Context, id volume.ID) (volume.Volume, error) {
	v, err := s.attacher.Volume(ctx, id)
	switch {
	case err != nil:
		return volume.Volume{}, fmt.Errorf("volume %s: %w", id, err)
	case v.Status.Phase == volume.PhaseDeleting:
		return volume.Volume{}, fmt.Errorf("volume %s is being deleted: %w", id, volume.ErrNotFound)
	case v.Status.Phase == volume.PhaseCreating:
		return volume.Volume{}, fmt.Errorf("volume %s is still being created: %w", id, volume.ErrPending)
	}
	return v, nil
}
