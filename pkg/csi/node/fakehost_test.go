package node

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// fakeHost is a machine in memory, by the contracts of *host.Host.
type fakeHost struct {
	mu      sync.Mutex
	kinds   map[string]host.Kind // what lies at a path, under any mount
	full    map[string]bool      // directories and files that aren't empty
	mounts  []host.MountPoint    // in the order in which they were made
	volumes map[string]volume.ID // by device: whose content it shows
	content map[volume.ID]host.Content
	size    map[volume.ID]int64
	access  map[string]host.Access
	dead    map[string]bool // devices that answer EIO
	noGrow  bool            // ext4 can't be grown online
	// hook is asked before every step that could fail; its error is returned.
	hook func(step string) error
	log  []string // steps that change something
}

func newFakeHost() *fakeHost {
	return &fakeHost{
		kinds: map[string]host.Kind{}, full: map[string]bool{}, volumes: map[string]volume.ID{}, content: map[volume.ID]host.Content{},
		size: map[volume.ID]int64{}, access: map[string]host.Access{}, dead: map[string]bool{},
	}
}

func (h *fakeHost) step(changes bool, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if h.hook != nil {
		if err := h.hook(text); err != nil {
			return err
		}
	}
	if changes {
		h.log = append(h.log, text)
	}
	return nil
}

func (h *fakeHost) inspect(path string) host.Path {
	p := host.Path{Resolved: path, Kind: h.kinds[path], Empty: !h.full[path]}
	if p.Kind == "" {
		p.Kind = host.KindMissing
	}
	for _, m := range h.mounts {
		if m.Path == path {
			p.Mounts = append(p.Mounts, m)
			p.Kind = host.KindMount
		}
	}
	return p
}

func (h *fakeHost) Inspect(_ context.Context, path string) (host.Path, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.inspect(path), h.step(false, "inspect")
}

func (h *fakeHost) MountsOf(_ context.Context, device string) ([]host.MountPoint, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var of []host.MountPoint
	for _, m := range h.mounts {
		if m.Of(device) {
			of = append(of, m)
		}
	}
	return of, h.step(false, "mounts of")
}

func (h *fakeHost) Mount(_ context.Context, o host.MountOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "mount %s at %s -t %s -o %s", o.Device, o.Target, o.FSType, strings.Join(o.Options, ",")); err != nil {
		return err
	}
	if c := h.content[h.volumes[o.Device]]; h.dead[o.Device] || c.FSType != o.FSType {
		return fmt.Errorf("mount: wrong fs type, bad superblock on %s (%s)", o.Device, c)
	}
	h.mounts = append(h.mounts, host.MountPoint{
		Path: o.Target, Source: o.Device, FSType: o.FSType, Device: "7:" + strings.TrimPrefix(o.Device, "/dev/loop"), Root: "/",
		ReadOnly: slices.Contains(o.Options, "ro"),
	})
	return nil
}

func (h *fakeHost) Bind(_ context.Context, o host.BindOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "bind %s to %s %s", o.Source, o.Target, o.Access); err != nil {
		return err
	}
	m := host.MountPoint{Source: "devtmpfs", FSType: "devtmpfs", Device: "0:5", Root: "/" + filepath.Base(o.Source)}
	if !strings.HasPrefix(o.Source, "/dev/") {
		top, mounted := h.inspect(o.Source).Top()
		if !mounted {
			return fmt.Errorf("bind: %s is no mount", o.Source)
		}
		m = top
	}
	m.Path, m.ReadOnly = o.Target, o.Access == host.ReadOnly
	h.mounts = append(h.mounts, m)
	return nil
}

func (h *fakeHost) Rebind(_ context.Context, o host.BindOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "rebind %s %s", o.Target, o.Access); err != nil {
		return err
	}
	for i := range h.mounts {
		if h.mounts[i].Path == o.Target {
			h.mounts[i].ReadOnly = o.Access == host.ReadOnly
		}
	}
	return nil
}

func (h *fakeHost) Unmount(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "unmount %s", path); err != nil {
		return err
	}
	h.unmount(path)
	return nil
}

func (h *fakeHost) UnmountLazily(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "unmount lazily %s", path); err != nil {
		return err
	}
	h.unmount(path)
	return nil
}

func (h *fakeHost) unmount(path string) {
	for i := len(h.mounts) - 1; i >= 0; i-- {
		if h.mounts[i].Path == path {
			h.mounts = slices.Delete(h.mounts, i, i+1)
			return
		}
	}
}

func (h *fakeHost) MakeDir(path string) error  { return h.make(path, host.KindDirectory) }
func (h *fakeHost) MakeFile(path string) error { return h.make(path, host.KindFile) }

func (h *fakeHost) make(path string, k host.Kind) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "make %s", path); err != nil {
		return err
	}
	if h.kinds[path] == "" {
		h.kinds[path] = k
	}
	return nil
}

func (h *fakeHost) Remove(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "remove %s", path); err != nil {
		return err
	}
	if h.full[path] {
		return fmt.Errorf("remove: %w", volume.ErrPrecondition)
	}
	delete(h.kinds, path)
	return nil
}

func (h *fakeHost) Content(_ context.Context, device string) (host.Content, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(false, "content"); err != nil {
		return host.Content{}, err
	}
	if h.dead[device] {
		return host.Content{}, fmt.Errorf("read %s: input/output error", device)
	}
	if c, written := h.content[h.volumes[device]]; written {
		return c, nil
	}
	return host.Content{Blank: true}, nil
}

func (h *fakeHost) CheckMountable(_ context.Context, device, fsType string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(false, "check mountable"); err != nil {
		return err
	}
	if h.content[h.volumes[device]].FSType != fsType {
		return fmt.Errorf("check: not %s", fsType)
	}
	return nil
}

func (h *fakeHost) Format(_ context.Context, o host.FormatOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := h.volumes[o.Device]
	if _, written := h.content[id]; written && !o.Overwrite {
		return fmt.Errorf("mkfs: %s appears to contain data", o.Device)
	}
	h.content[id] = host.Content{Other: "half a filesystem"} // what a crash here leaves
	if err := h.step(true, "mkfs.%s %s %s", o.FSType, strings.Join(o.Arguments, " "), o.Device); err != nil {
		return err
	}
	h.content[id] = host.Content{FSType: o.FSType, FSBytes: h.size[id]}
	return nil
}

func (h *fakeHost) Grow(_ context.Context, o host.GrowOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.noGrow {
		return fmt.Errorf("CAP_SYS_RESOURCE: %w", volume.ErrPrecondition)
	}
	if err := h.step(true, "grow %s at %s", o.Device, o.Path); err != nil {
		return err
	}
	id := h.volumes[o.Device]
	h.content[id] = host.Content{FSType: o.FSType, FSBytes: h.size[id]}
	return nil
}

func (h *fakeHost) GrowUnmounted(_ context.Context, device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(true, "grow %s unmounted", device); err != nil {
		return err
	}
	id := h.volumes[device]
	h.content[id] = host.Content{FSType: h.content[id].FSType, FSBytes: h.size[id]}
	return nil
}

func (h *fakeHost) Alive(_ context.Context, path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(false, "alive"); err != nil {
		return err
	}
	if top, mounted := h.inspect(path).Top(); !mounted || h.dead[top.Source] {
		return fmt.Errorf("input/output error: %w", volume.ErrUnavailable)
	}
	return nil
}

func (h *fakeHost) Usage(context.Context, string) (host.Usage, error) {
	return host.Usage{TotalBytes: 100, UsedBytes: 30, AvailableBytes: 70, TotalInodes: 10, UsedInodes: 3, FreeInodes: 7}, nil
}

func (h *fakeHost) DeviceSize(_ context.Context, device string) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.size[h.volumes[device]], h.step(false, "device size")
}

func (h *fakeHost) SetAccess(_ context.Context, device string, a host.Access) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.step(false, "set access"); err != nil {
		return err
	}
	h.access[device] = a
	return nil
}

func (h *fakeHost) Sync(context.Context, string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.step(false, "sync")
}

func (h *fakeHost) InUse(_ context.Context, device string) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.mounts, func(m host.MountPoint) bool { return m.Source == device }), h.step(false, "in use")
}

func (h *fakeHost) Sweep(context.Context) error { return nil }

// state is everything that staging may leave on the machine, for comparisons.
func (h *fakeHost) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprint("mounts ", h.mounts, " paths ", slices.Sorted(maps.Keys(h.kinds)))
}
