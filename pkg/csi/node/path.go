package node

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// maxPathBytes is the kernel's limit (PATH_MAX without its NUL).
const maxPathBytes = 4095

// checkPath checks the form of a path in a request.
func (s *Service) checkPath(field, path string) error {
	control := strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r == 0x7f })
	switch {
	case path == "":
		return volume.Invalid(field, path, "set")
	case !filepath.IsAbs(path), path == "/", len(path) > maxPathBytes, control, filepath.Clean(path) != strings.TrimSuffix(path, "/"):
		return volume.Invalid(field, path, "an absolute path, without '.', '..', '//' and control characters, of at most 4095 bytes")
	case !s.inKubeletDir(path):
		return volume.Invalid(field, path, "inside "+s.kubeletDir)
	}
	return nil
}

func (s *Service) inKubeletDir(path string) bool {
	return s.kubeletDir == "" || strings.HasPrefix(path, s.kubeletDir+"/")
}

// inspect looks at a checked path, and refuses links and what links lead out of
// kubelet's directory.
func (s *Service) inspect(ctx context.Context, field, path string) (host.Path, error) {
	p, err := s.host.Inspect(ctx, filepath.Clean(path))
	if err != nil {
		return host.Path{}, err
	}
	if p.Kind == host.KindSymlink {
		return host.Path{}, volume.Invalid(field, path, "no symbolic link")
	}
	if s.kubeletDir == "" || s.inKubeletDir(p.Resolved) {
		return p, nil
	}
	// Kubelet's directory may itself be reached by a link.
	root, err := s.host.Inspect(ctx, filepath.Join(s.kubeletDir, "x"))
	if err != nil {
		return host.Path{}, err
	}
	if !strings.HasPrefix(p.Resolved, filepath.Dir(root.Resolved)+"/") {
		return host.Path{}, volume.Invalid(field, path, "inside "+s.kubeletDir+" after its links are followed")
	}
	return p, nil
}
