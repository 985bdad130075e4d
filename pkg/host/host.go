package host

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options configure a Host.
type Options struct {
	Logger *slog.Logger // nil means none
	// ScratchDir is where CheckMountable mounts for a moment: a directory of this
	// Host alone, as an absolute path. It is created when it is needed.
	ScratchDir string
}

// Host is the machine that this process runs on.
type Host struct {
	log     *slog.Logger
	scratch string

	featuresOnce sync.Once
	features     mkfsFeatures // what the installed mkfs programs know

	flights singleflight.Group // questions to filesystems, by path
}

// New makes a Host. It does nothing to the machine. ErrInvalid without a
// ScratchDir.
func New(o Options) (*Host, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(o.ScratchDir) {
		return nil, volume.Invalid("ScratchDir", o.ScratchDir, "an absolute path")
	}
	return &Host{log: o.Logger, scratch: filepath.Clean(o.ScratchDir)}, nil
}

// commandTimeout bounds a command whose caller set no deadline.
const commandTimeout = 2 * time.Minute

// MountPoint is one mount, as the kernel lists it.
type MountPoint struct {
	Path     string
	Source   string // "/dev/loop3"
	FSType   string
	Device   string // "major:minor" of the filesystem; equal for all mounts of one
	Root     string // the part of the filesystem that is mounted: "/", or "/loop3" for a bound device node
	ReadOnly bool   // by the mount's own flags or the filesystem's
}

// String says what is mounted, for people.
func (m MountPoint) String() string { return fmt.Sprintf("%s (%s)", m.Source, m.FSType) }

// Kind is what a path is.
type Kind string

// The kinds of paths.
const (
	KindMissing   Kind = "nothing"
	KindDirectory Kind = "directory"
	KindFile      Kind = "file"
	KindSymlink   Kind = "symbolic link"
	KindOther     Kind = "special file"
	KindMount     Kind = "mount point"
)

// Path is what Inspect tells about a path.
type Path struct {
	Resolved string // with the links of its parents followed, not its own
	Kind     Kind
	Empty    bool         // KindDirectory: has no entries; KindFile: has no bytes
	Mounts   []MountPoint // KindMount: all that is mounted there; the last one is on top
}

// Top returns the mount that one sees at the path, and whether there is one.
func (p Path) Top() (MountPoint, bool) {
	if len(p.Mounts) == 0 {
		return MountPoint{}, false
	}
	return p.Mounts[len(p.Mounts)-1], true
}

// Access says whether something may be written.
type Access string

// The accesses.
const (
	ReadWrite Access = "rw"
	ReadOnly  Access = "ro"
)
