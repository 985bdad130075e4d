package node

import (
	"context"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/host"
)

// linkHost is a fakeHost in which kubelet's "escape" is a link to /etc.
type linkHost struct{ *fakeHost }

func (h *linkHost) Inspect(ctx context.Context, path string) (host.Path, error) {
	p, err := h.fakeHost.Inspect(ctx, path)
	p.Resolved = strings.Replace(p.Resolved, kubelet+"/escape/", "/etc/", 1)
	return p, err
}
