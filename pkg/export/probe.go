package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Facility is something that an export may need from the host.
type Facility struct {
	Name   string
	OK     bool
	Detail string // what it offers, or why it is missing
}

// Choice says which export volumes of one sort get, and why.
type Choice struct {
	Volumes string // which volumes
	Kind    Kind   // "" if none is possible
	Why     string
}

// Report is what Probe found.
type Report struct {
	Kernel     string
	Facilities []Facility
	// Choices: the first is for loop-only volumes, the second for all others.
	Choices []Choice
}

// For is the choice for volumes of these parameters.
func (r Report) For(p volume.Params) Choice {
	if p.LoopOnly() {
		return r.Choices[0]
	}
	return r.Choices[1]
}

// Probe tries what the host offers. It makes a small export of each kind and
// reads from it, and leaves nothing behind.
func Probe(ctx context.Context) Report {
	var r Report
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	fuse := try(probeFUSE(ctx))
	loop := try(probeLoop(ctx))
	r.Facilities = []Facility{
		named("fuse", fuse), named("loop", loop),
		named("ublk", device("/dev/ublk-control", "the kernel has no ublk driver (CONFIG_BLK_DEV_UBLK, since 6.0)")),
		named("nbd", device("/dev/nbd0", "the kernel has no NBD client (module nbd)")),
		named("io_uring", ringFinding()), named("io-flusher", ioFlusher()),
	}
	r.Choices = []Choice{
		choose("one replica, on the node that uses the volume", loop, KindLoop, "straight on the replica's image, no process in between"),
		choose("all others", fuse, KindFUSE, "works with every kernel since 5.15; exports through ublk and the kernel's NBD client are not built in"),
	}
	return r
}

// finding is a facility without its name.
type finding struct {
	ok     bool
	detail string
}

func try(detail string, err error) finding {
	if err != nil {
		return finding{false, err.Error()}
	}
	return finding{true, detail}
}

func named(name string, f finding) Facility { return Facility{name, f.ok, f.detail} }

func choose(volumes string, f finding, kind Kind, why string) Choice {
	if !f.ok {
		return Choice{Volumes: volumes, Why: f.detail}
	}
	return Choice{Volumes: volumes, Kind: kind, Why: why}
}

func device(path, why string) finding {
	switch _, err := os.Stat(path); {
	case err == nil:
		return finding{true, path + " exists; this version does not use it"}
	case errors.Is(err, os.ErrNotExist):
		return finding{false, why}
	default:
		return finding{false, err.Error()}
	}
}

// probeBytes is the size of the devices that are tried.
const probeBytes = 1 << 20

// probeFUSE makes a FUSE export of an empty device.
func probeFUSE(ctx context.Context) (detail string, err error) {
	dir, err := os.MkdirTemp("", "holdfast-probe-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := OpenFUSE(ctx, FUSEOptions{Dir: dir + "/export", Volume: "probe", Device: zeroes{}, Threads: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", err
	}
	return probeExport(ctx, e, e.(*fuseExport).loop)
}

// probeLoop makes a loop device on an empty file.
func probeLoop(ctx context.Context) (detail string, err error) {
	dir, err := os.MkdirTemp("", "holdfast-probe-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image := dir + "/image"
	if err := os.WriteFile(image, make([]byte, probeBytes), 0o600); err != nil {
		return "", err
	}
	e, err := OpenLoop(ctx, LoopOptions{Path: image, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", err
	}
	return probeExport(ctx, e, e.(*loopExport).loop)
}

// probeExport reads from an export and closes it.
func probeExport(ctx context.Context, e Export, l *loopDevice) (detail string, err error) {
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	detail = fmt.Sprintf("tried on %s: %d-byte sectors, direct I/O %s", e.Device(), sectorBytes, map[bool]string{true: "on", false: "off"}[l.direct()])
	return detail, detached(ctx, "read "+e.Device(), func() error {
		f, err := os.Open(e.Device())
		if err != nil {
			return err
		}
		_, err = io.ReadFull(f, make([]byte, sectorBytes))
		return errors.Join(err, f.Close())
	})
}

// zeroes is a read-only device of probeBytes.
type zeroes struct{}

func (zeroes) Size() int64  { return probeBytes }
func (zeroes) Close() error { return nil }

func (zeroes) Submit(io *block.IO) {
	if io.Op.Changes() {
		io.Done(io, fmt.Errorf("probe: %w", volume.ErrUnsupported))
		return
	}
	clear(io.Data)
	io.Done(io, block.CheckRange(io, probeBytes))
}

// String is the report for people.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s\n", r.Kernel)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range r.Facilities {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, map[bool]string{true: "yes", false: "no"}[f.OK], f.Detail)
	}
	_ = w.Flush() // to memory: can't fail
	for _, c := range r.Choices {
		kind := string(c.Kind)
		if kind == "" {
			kind = "none possible"
		}
		fmt.Fprintf(w, "export for %s:\t%s: %s\n", c.Volumes, kind, c.Why)
	}
	_ = w.Flush()
	return b.String()
}
