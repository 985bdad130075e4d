package csi

import (
	"fmt"
	"slices"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Capability is a checked volume capability.
type Capability struct {
	Block      bool
	FSType     string // mount only; "" leaves it open
	MountFlags []string
	Mode       csipb.VolumeCapability_AccessMode_Mode
}

// DefaultFSType is used when the caller leaves the filesystem open.
const DefaultFSType = "xfs"

// FSTypes are the filesystems that a volume may be created with, and the
// smallest volume, in bytes, for each. mkfs itself accepts 300 MiB for xfs, 109
// MiB for btrfs and less than 1 MiB for ext4; the last two are rounded up to
// where the filesystem is of use and no option of mkfs makes it fail.
var FSTypes = map[string]int64{
	"xfs":   300 << 20,
	"ext4":  16 << 20,
	"btrfs": 128 << 20,
}

// AccessModes are the access modes supported: all that need only one node.
var AccessModes = []csipb.VolumeCapability_AccessMode_Mode{
	csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// ReadOnly says whether the capability allows no write at all.
func (c Capability) ReadOnly() bool {
	return c.Mode == csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY || slices.Contains(c.MountFlags, "ro")
}

// OneTarget says whether the volume may be published at one target path only:
// by the CSI specification, in every mode but SINGLE_NODE_MULTI_WRITER.
func (c Capability) OneTarget() bool {
	return c.Mode != csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
}

// MinimumBytes is the smallest volume for the capability.
func (c Capability) MinimumBytes() int64 {
	if c.Block {
		return volume.MinSizeBytes
	}
	return max(volume.MinSizeBytes, FSTypes[c.EffectiveFSType()])
}

// EffectiveFSType is FSType or the default; "" for block.
func (c Capability) EffectiveFSType() string {
	switch {
	case c.Block:
		return ""
	case c.FSType == "":
		return DefaultFSType
	}
	return c.FSType
}

// Fits says whether a volume created with spec can be used with the capability:
// nil, or an error that says why not (wrapping ErrPrecondition).
func (c Capability) Fits(spec volume.Spec) error {
	switch {
	case c.Block && !spec.Block:
		return fmt.Errorf("the volume was created with a filesystem and can't be used as a block device: %w", volume.ErrPrecondition)
	case !c.Block && spec.Block:
		return fmt.Errorf("the volume was created as a block device and can't be mounted: %w", volume.ErrPrecondition)
	case !c.Block && c.FSType != "" && spec.FSType != "" && c.FSType != spec.FSType:
		return fmt.Errorf("the volume was created with %s and can't be mounted as %s: %w", spec.FSType, c.FSType, volume.ErrPrecondition)
	}
	return nil
}

// ParseCapability checks one capability of a request.
func ParseCapability(c *csipb.VolumeCapability) (Capability, error) {
	parsed, err := parseAccessType(c)
	if err != nil {
		return Capability{}, err
	}
	parsed.Mode = c.GetAccessMode().GetMode()
	if !slices.Contains(AccessModes, parsed.Mode) {
		return Capability{}, volume.Invalid("volume_capability.access_mode", parsed.Mode.String(), "one of "+accessModeNames())
	}
	readOnly := parsed.Mode == csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	if readOnly && slices.Contains(parsed.MountFlags, "rw") {
		return Capability{}, volume.Invalid("volume_capability.mount.mount_flags", "rw", "absent with access mode SINGLE_NODE_READER_ONLY")
	}
	return parsed, nil
}

func accessModeNames() string {
	var names []string
	for _, m := range AccessModes {
		names = append(names, m.String())
	}
	return strings.Join(names, ", ")
}

// parseAccessType checks everything but the access mode.
func parseAccessType(c *csipb.VolumeCapability) (Capability, error) {
	if c == nil {
		return Capability{}, volume.Invalid("volume_capability", "", "set")
	}
	switch access := c.GetAccessType().(type) {
	case *csipb.VolumeCapability_Block:
		return Capability{Block: true}, nil
	case *csipb.VolumeCapability_Mount:
		return parseMount(access.Mount)
	}
	return Capability{}, volume.Invalid("volume_capability.access_type", "", "block or mount")
}

func parseMount(m *csipb.VolumeCapability_MountVolume) (Capability, error) {
	if _, known := FSTypes[m.GetFsType()]; m.GetFsType() != "" && !known {
		return Capability{}, volume.Invalid("volume_capability.mount.fs_type", m.GetFsType(), "one of "+strings.Join(sortedKeys(FSTypes), ", "))
	}
	if g := m.GetVolumeMountGroup(); g != "" {
		return Capability{}, volume.Invalid("volume_capability.mount.volume_mount_group", g, "empty: the driver doesn't have VOLUME_MOUNT_GROUP")
	}
	flags, err := parseMountFlags(m.GetMountFlags())
	if err != nil {
		return Capability{}, err
	}
	return Capability{FSType: m.GetFsType(), MountFlags: flags}, nil
}

// maxMountFlagBytes is the specification's limit for all mount flags together.
const maxMountFlagBytes = 4096

// notMountFlags change what a mount is, or where it comes from, not how it
// behaves.
var notMountFlags = []string{
	"bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "subvol", "subvolid", "device", "logdev", "rtdev",
	"journal_dev", "journal_path", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable",
	"user", "users", "owner", "group", "helper", "uhelper",
}

// contradictions are pairs of mount flags of which only one can be meant.
var contradictions = [][2]string{
	{"ro", "rw"}, {"exec", "noexec"}, {"suid", "nosuid"}, {"dev", "nodev"}, {"atime", "noatime"}, {"atime", "relatime"},
	{"noatime", "relatime"}, {"noatime", "strictatime"}, {"relatime", "strictatime"}, {"sync", "async"}, {"discard", "nodiscard"},
}

// parseMountFlags splits flags at commas and refuses those that could change
// what is mounted, or that contradict each other. Values never appear in errors:
// they may be sensitive.
func parseMountFlags(given []string) ([]string, error) {
	const field = "volume_capability.mount.mount_flags"
	var flags []string
	total := 0
	for _, g := range given {
		total += len(g)
		for _, flag := range splitFlags(g) {
			name, value, _ := strings.Cut(flag, "=")
			odd := strings.ContainsFunc(flag, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) || !plain(name) || !quotedWell(value)
			switch {
			case name == "" || odd || strings.HasPrefix(flag, "-"):
				return nil, volume.Invalid(field, name, "a mount option such as noatime")
			case slices.Contains(notMountFlags, name) || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-"):
				return nil, volume.Invalid(field, name, "an option of the filesystem, not one that changes what is mounted")
			}
			flags = append(flags, flag)
		}
	}
	if total > maxMountFlagBytes {
		return nil, volume.Invalid(field, fmt.Sprintf("%d bytes", total), fmt.Sprintf("at most %d bytes in all", maxMountFlagBytes))
	}
	for _, pair := range contradictions {
		if slices.Contains(flags, pair[0]) && slices.Contains(flags, pair[1]) {
			return nil, volume.Invalid(field, pair[0]+","+pair[1], "free of contradictions")
		}
	}
	return flags, nil
}

// splitFlags splits at commas outside of double quotes, as mount(8) does: an
// SELinux context has commas of its own.
func splitFlags(given string) []string {
	var flags []string
	start, quoted := 0, false
	for i, r := range given {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ',' && !quoted:
			flags = append(flags, given[start:i])
			start = i + 1
		}
	}
	return append(flags, given[start:])
}

func plain(s string) bool { return !strings.Contains(s, `"`) }

// quotedWell says whether a value has no quotes, or one pair around all of it.
func quotedWell(value string) bool {
	inner, opened := strings.CutPrefix(value, `"`)
	inner, closed := strings.CutSuffix(inner, `"`)
	return opened == closed && plain(inner)
}

// ParseCapabilities checks the capabilities of one volume and merges them: all
// block, or all mount with one filesystem. Mode and MountFlags of the result
// are of no meaning.
func ParseCapabilities(list []*csipb.VolumeCapability) (Capability, error) {
	return mergeCapabilities(list, ParseCapability)
}

func mergeCapabilities(list []*csipb.VolumeCapability, parse func(*csipb.VolumeCapability) (Capability, error)) (Capability, error) {
	if len(list) == 0 {
		return Capability{}, volume.Invalid("volume_capabilities", "", "set")
	}
	var merged Capability
	for i, c := range list {
		parsed, err := parse(c)
		switch {
		case err != nil:
			return Capability{}, err
		case i > 0 && parsed.Block != merged.Block:
			return Capability{}, volume.Invalid("volume_capabilities", "block and mount", "all block or all mount")
		case merged.FSType != "" && parsed.FSType != "" && parsed.FSType != merged.FSType:
			return Capability{}, volume.Invalid("volume_capabilities", merged.FSType+" and "+parsed.FSType, "of one fs_type")
		}
		merged.Block = parsed.Block
		if parsed.FSType != "" {
			merged.FSType = parsed.FSType
		}
	}
	return merged, nil
}
