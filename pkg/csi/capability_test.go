package csi

import (
	"errors"
	"slices"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const writer = csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

func mountCap(fsType string, flags ...string) *csipb.VolumeCapability {
	return &csipb.VolumeCapability{
		AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
		AccessMode: &csipb.VolumeCapability_AccessMode{Mode: writer},
	}
}

func blockCap() *csipb.VolumeCapability {
	return &csipb.VolumeCapability{
		AccessType: &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}},
		AccessMode: &csipb.VolumeCapability_AccessMode{Mode: writer},
	}
}

func inMode(c *csipb.VolumeCapability, m csipb.VolumeCapability_AccessMode_Mode) *csipb.VolumeCapability {
	c.AccessMode = &csipb.VolumeCapability_AccessMode{Mode: m}
	return c
}

func TestParseCapability(t *testing.T) {
	noMode := mountCap("xfs")
	noMode.AccessMode = nil
	noType := mountCap("xfs")
	noType.AccessType = nil
	group := mountCap("xfs")
	group.GetMount().VolumeMountGroup = "1000"
	tests := map[string]struct {
		given   *csipb.VolumeCapability
		refused string // part of the error; "" means accepted
	}{
		"block":                {blockCap(), ""},
		"filesystem left open": {mountCap(""), ""},
		"xfs":                  {mountCap("xfs"), ""},
		"ext4":                 {mountCap("ext4"), ""},
		"btrfs":                {mountCap("btrfs"), ""},
		"options":              {mountCap("xfs", "noatime", "nodev,nosuid", "logbsize=256k"), ""},
		"SELinux context":      {mountCap("xfs", `context="system_u:object_r:container_file_t:s0:c1,c2",noatime`), ""},
		"quote left open":      {mountCap("xfs", `context="s0:c1,c2`), "mount_flags"},
		"quoted name":          {mountCap("xfs", `"bind"`), "mount_flags"},
		"quotes in the middle": {mountCap("xfs", `context=a"b,bind"`), "mount_flags"},
		"flag after quotes":    {mountCap("xfs", `context="a",bind`), "mount_flags"},
		"read-only option":     {mountCap("xfs", "ro"), ""},
		"reader":               {inMode(mountCap("xfs"), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), ""},
		"single writer":        {inMode(blockCap(), csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER), ""},
		"multi writer":         {inMode(mountCap("xfs"), csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), ""},
		"none":                 {nil, "volume_capability"},
		"no access mode":       {noMode, "UNKNOWN"},
		"no access type":       {noType, "block or mount"},
		"many readers":         {inMode(mountCap("xfs"), csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY), "MULTI_NODE_READER_ONLY"},
		"one of many writes":   {inMode(mountCap("xfs"), csipb.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER), "MULTI_NODE_SINGLE_WRITER"},
		"many writers":         {inMode(blockCap(), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), "MULTI_NODE_MULTI_WRITER"},
		"future mode":          {inMode(blockCap(), 99), "99"},
		"ntfs":                 {mountCap("ntfs"), "btrfs, ext4, xfs"},
		"mount group":          {group, "VOLUME_MOUNT_GROUP"},
		"bind":                 {mountCap("xfs", "bind"), "mount_flags"},
		"loop":                 {mountCap("xfs", "loop=/dev/loop0"), "mount_flags"},
		"other subvolume":      {mountCap("btrfs", "subvol=x"), "mount_flags"},
		"external log":         {mountCap("xfs", "logdev=/dev/sda"), "mount_flags"},
		"userspace option":     {mountCap("xfs", "x-systemd.automount"), "mount_flags"},
		"an argument":          {mountCap("xfs", "--bind"), "mount_flags"},
		"empty option":         {mountCap("xfs", ""), "mount_flags"},
		"no name":              {mountCap("xfs", "=1"), "mount_flags"},
		"empty between commas": {mountCap("xfs", "noatime,,nodev"), "mount_flags"},
		"blank":                {mountCap("xfs", "noatime /etc"), "mount_flags"},
		"nul":                  {mountCap("xfs", "no\x00atime"), "mount_flags"},
		"ro and rw":            {mountCap("xfs", "ro", "rw"), "free of contradictions"},
		"exec and noexec":      {mountCap("xfs", "exec,noexec"), "free of contradictions"},
		"too many":             {mountCap("xfs", strings.Repeat("noatime,", 600)+"nodev"), "4096"},
		"a reader that writes": {inMode(mountCap("xfs", "rw"), csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), "SINGLE_NODE_READER_ONLY"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseCapability(test.given)
			checkRefused(t, err, test.refused)
		})
	}
}

// mountSplit splits mount options as libmount does, so that the fuzzer below sees
// what the kernel would be asked for.
func mountSplit(options string) []string {
	var all []string
	var one strings.Builder
	quoted := false
	for _, b := range []byte(options) {
		if b == '"' {
			quoted = !quoted
		}
		if b == ',' && !quoted {
			all = append(all, one.String())
			one.Reset()
			continue
		}
		one.WriteByte(b)
	}
	return append(all, one.String())
}

// FuzzMountFlags: what is accepted is exactly what mount(8) makes of it, and
// nothing of it is denied.
func FuzzMountFlags(f *testing.F) {
	for _, seed := range []string{"noatime", "ro,nodev", `context="a,b",noatime`, `context="a"`, `a="b,bind"`, `a=",bind,"`, "loop=/dev/loop0", "x-y", "--bind", `a\,bind`, `a="\",bind`} {
		f.Add(seed, "bind")
		f.Add("noatime", seed)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		flags, err := parseMountFlags([]string{one, two})
		if err != nil {
			if !errors.Is(err, volume.ErrInvalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if got := mountSplit(strings.Join(flags, ",")); !slices.Equal(got, flags) {
			t.Fatalf("accepted %q, which mount reads as %q", flags, got)
		}
		for _, flag := range flags {
			name, _, _ := strings.Cut(flag, "=")
			denied := slices.Contains(notMountFlags, name) || strings.HasPrefix(strings.ToLower(name), "x-") || strings.HasPrefix(name, "-")
			if name == "" || denied || strings.ContainsAny(flag, "\x00\n\t \\") || strings.ContainsAny(name, "\",") {
				t.Fatalf("accepted %q", flag)
			}
		}
	})
}

func checkRefused(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("refused: %v", err)
	case part != "" && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), part)):
		t.Errorf("error %v, want ErrInvalid with %q", err, part)
	}
}

func TestParseCapabilities(t *testing.T) {
	tests := map[string]struct {
		given   []*csipb.VolumeCapability
		want    Capability
		refused string
	}{
		"none":             {nil, Capability{}, "volume_capabilities"},
		"one left open":    {[]*csipb.VolumeCapability{mountCap("")}, Capability{}, ""},
		"open, then named": {[]*csipb.VolumeCapability{mountCap(""), mountCap("ext4"), mountCap("")}, Capability{FSType: "ext4"}, ""},
		"block twice":      {[]*csipb.VolumeCapability{blockCap(), blockCap()}, Capability{Block: true}, ""},
		"block and mount":  {[]*csipb.VolumeCapability{blockCap(), mountCap("")}, Capability{}, "all block or all mount"},
		"two filesystems":  {[]*csipb.VolumeCapability{mountCap("xfs"), mountCap("ext4")}, Capability{}, "xfs and ext4"},
		"one is bad": {[]*csipb.VolumeCapability{mountCap("xfs"), inMode(mountCap("xfs"), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)},
			Capability{}, "MULTI_NODE_MULTI_WRITER"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCapabilities(test.given)
			checkRefused(t, err, test.refused)
			if err == nil && (got.Block != test.want.Block || got.FSType != test.want.FSType) {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}
