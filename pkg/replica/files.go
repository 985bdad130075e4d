package replica

import (
	"time"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Pool is what a Server asks of a pool; *pool.Pool is one.
type Pool interface {
	Name() string
	Path() string
	ReplicasDir() string
	FS() pool.FS
	// Claim, Adopt and Release book space; Admit asks whether a thin replica may
	// write so many bytes.
	Claim(volume.UID, pool.Claim) error
	Adopt(volume.UID, pool.Claim)
	Release(volume.UID)
	Admit(n int64) error
	// Incarnation names the time through which the pool has kept what was not
	// flushed.
	Incarnation() volume.Incarnation
}

// Pools is these pools as Options wants them.
func Pools(pools ...*pool.Pool) []Pool {
	out := make([]Pool, len(pools))
	for i, p := range pools {
		out[i] = p
	}
	return out
}

// Files opens what a session's I/O goes to.
type Files interface {
	// OpenImage opens an image for one session alone, unless to read only;
	// ErrPrecondition when somebody else has it.
	OpenImage(path string, mode Mode) (Image, error)
	// OpenMap opens a regions.map, and makes an empty one if there is none.
	OpenMap(path string) (MapFile, error)
}

// osFiles are the kernel's.
type osFiles struct{}

// OpenImage implements Files.
func (osFiles) OpenImage(path string, mode Mode) (Image, error) { return openOSImage(path, mode) }

// OpenMap implements Files.
func (osFiles) OpenMap(path string) (MapFile, error) { return openRegionFile(path) }

// Background runs what sessions do by themselves. What it runs ends by itself, and
// does nothing once its session is over.
type Background interface {
	// Go runs do soon, not before it returns.
	Go(do func())
	// After runs do after d.
	After(d time.Duration, do func())
	// Now is the time; only differences matter.
	Now() time.Time
}

// goroutines is the Background of a real process.
type goroutines struct{}

// Go implements Background.
func (goroutines) Go(do func()) { go do() }

// After implements Background.
func (goroutines) After(d time.Duration, do func()) { time.AfterFunc(d, do) }

// Now implements Background.
func (goroutines) Now() time.Time { return time.Now() }
