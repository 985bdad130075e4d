package replica

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
)

// TestImageTimes: on XFS a write leaves the image's times alone, and a sync tells
// of it.
func TestImageTimes(t *testing.T) {
	dir := pooltest.Mount(t, pooltest.DefaultImageBytes)
	for name, mode := range map[string]Mode{"buffered": Buffered, "direct": Direct} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, make([]byte, mib), 0o600); err != nil {
				t.Fatal(err)
			}
			long := time.Now().Add(-time.Hour)
			if err := os.Chtimes(path, long, long); err != nil {
				t.Fatal(err)
			}
			img, err := openOSImage(path, mode)
			if err != nil {
				t.Fatal(err)
			}
			age := func() time.Duration {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				return time.Since(st.ModTime())
			}
			p := block.Alloc(block.Align)
			p[0] = 1
			if err := img.WriteAt(p, 0); err != nil {
				t.Fatal(err)
			}
			if age() < time.Minute {
				t.Error("a write set the modification time")
			}
			if err := img.Sync(); err != nil {
				t.Fatal(err)
			}
			if age() > time.Minute {
				t.Error("a sync did not set the modification time")
			}
			got := block.Alloc(block.Align)
			if err := img.ReadAt(got, 0); err != nil || got[0] != 1 {
				t.Errorf("read %d, %v", got[0], err)
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
