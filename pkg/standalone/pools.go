package standalone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// spareBytes is what must be left when the pools' space is taken: logs, the
// store, and whoever else uses the disk.
const spareBytes = 1 << 30

// pools decides where each node's replicas go, and returns the nodes' --pool: a
// directory where the filesystem can hold replicas itself, else an image file. A
// pool that exists stays what it is. Errors: ErrNoSpace when the images that are
// to be made have no room.
func pools(o Options, l Layout) (map[string]string, error) {
	out := make(map[string]string, len(l.Nodes))
	var images, need int64 // to be made, and bytes for them
	for _, n := range l.Nodes {
		at := filepath.Join(o.Dir, n.Name, "pool")
		inDir, err := isDirPool(o.Dir, at)
		if err != nil {
			return nil, err
		}
		if inDir {
			out[n.Name] = "name=default,dir=" + at
			if err := os.MkdirAll(at, 0o755); err != nil {
				return nil, err
			}
			continue
		}
		out[n.Name] = fmt.Sprintf("name=default,image=%s,size=%d,mount=%s", imageOf(at), o.PoolSize, at)
		takes, err := pool.ImageNeeds(imageOf(at), o.PoolSize)
		if err != nil {
			return nil, err
		}
		if takes > 0 {
			images, need = images+1, need+takes
		}
	}
	if images == 0 {
		return out, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(o.Dir, &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", o.Dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need+spareBytes {
		return nil, fmt.Errorf("%s has %s free on its filesystem, but %d new pools of %s (--pool-size) need %s in advance, and %s besides: "+
			"take a smaller --pool-size, or a --dir with more room: %w",
			o.Dir, gib(free), images, gib(o.PoolSize), gib(need), gib(spareBytes), volume.ErrNoSpace)
	}
	return out, nil
}

func imageOf(at string) string { return at + ".img" }

// isDirPool says whether the pool at a path is, or is to be, a plain directory.
func isDirPool(dir, at string) (bool, error) {
	if _, err := os.Lstat(imageOf(at)); err == nil {
		return false, nil
	}
	if _, err := os.Lstat(filepath.Join(at, "pool.json")); err == nil {
		return true, nil
	}
	err := pool.CanHold(dir)
	if errors.Is(err, volume.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}

func gib(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }
