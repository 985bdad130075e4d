package kubelet

import (
	csipb "github.com/container-storage-interface/spec/lib/go/csi"
)

// AccessMode is the access mode of a volume's capability.
type AccessMode = csipb.VolumeCapability_AccessMode_Mode

// Spec is what a claim and its StorageClass ask for.
type Spec struct {
	Name      string
	SizeBytes int64 // required
	// LimitBytes is the largest size allowed; 0: any.
	LimitBytes int64
	Params     map[string]string
	// Block: raw block use; else a filesystem, FSType or the driver's default.
	Block  bool
	FSType string
	Flags  []string   // mount options
	Mode   AccessMode // default SINGLE_NODE_WRITER
	// On is the node where the pod shall run, "" leaves it open.
	On string
}

// Volume is a provisioned volume: what a PersistentVolume keeps.
type Volume struct {
	ID        string
	Spec      Spec
	SizeBytes int64
	// Nodes from which it is accessible; empty: from all.
	Nodes []string
}

// Capability is the CSI capability of a volume so used.
func (s Spec) Capability() *csipb.VolumeCapability {
	mode := s.Mode
	if mode == csipb.VolumeCapability_AccessMode_UNKNOWN {
		mode = csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	}
	c := &csipb.VolumeCapability{AccessMode: &csipb.VolumeCapability_AccessMode{Mode: mode}}
	if s.Block {
		c.AccessType = &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}}
		return c
	}
	c.AccessType = &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{FsType: s.FSType, MountFlags: s.Flags}}
	return c
}
