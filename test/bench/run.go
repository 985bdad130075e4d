package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const (
	node           = "n1" // where everything is used
	cleanupTimeout = 2 * time.Minute
	setupTimeout   = 10 * time.Minute
)

// bench is one run.
type bench struct {
	opt     Options
	out     io.Writer
	cluster *kubelet.Standalone
	report  report
	sides   []side
	volumes []kubelet.Volume
	undo    []func(context.Context) error // in reverse order
	// samples by workload and side.
	samples map[string]map[string][]sample
}

// side is one thing that is measured.
type side struct {
	name string
	path string
}

// run measures, reports and cleans up, whatever happens.
func run(ctx context.Context, o Options, out io.Writer) (err error) {
	b := &bench{opt: o, out: out, samples: make(map[string]map[string][]sample)}
	if b.opt.Dir == "" {
		if b.opt.Dir, err = os.MkdirTemp("/var/tmp", "holdfast-bench-"); err != nil {
			return err
		}
	} else if err := os.Mkdir(b.opt.Dir, 0o755); err != nil {
		return err
	}
	err = b.all(ctx)
	if err != nil && b.cluster != nil && ctx.Err() == nil && len(b.report.Results) == 0 {
		b.say("the last lines of the logs:\n%s", b.cluster.Tails(15))
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(err, b.cleanup(cctx))
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

func (b *bench) all(ctx context.Context) error {
	b.report = report{
		Began: time.Now().UTC(), SizeBytes: b.opt.SizeBytes, Runtime: b.opt.Runtime.String(), Warmup: b.opt.Warmup.String(), LoadBegin: load(),
	}
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	if err := b.prepare(setup); err != nil {
		return err
	}
	cases, err := selectWorkloads(b.opt.Only)
	if err != nil {
		return err
	}
	err = b.measureAll(ctx, cases)
	if b.report.Rounds > 0 { // of every workload
		b.report.Results = b.results(cases)
	}
	if err == nil && b.opt.Idle > 0 {
		b.report.Idle, err = b.measureIdle(ctx)
	}
	b.report.LoadEnd = load()
	// What an interrupted run has found is worth having, but not in the README.
	table := b.report.table()
	if b.report.Rounds > 0 {
		b.say("\n%s", table)
		if b.opt.JSON != "" {
			err = errors.Join(err, b.report.writeJSON(b.opt.JSON))
		}
	}
	if err == nil && b.opt.Readme != "" {
		err = writeReadme(b.opt.Readme, table)
	}
	if err != nil {
		return err
	}
	return b.report.verdict()
}

func (b *bench) results(cases []workload) []result {
	var all []result
	for _, w := range cases {
		for _, s := range b.sides {
			all = append(all, summarize(w, s.name, b.samples[w.Name][s.name], b.samples[w.Name][sideLoop]))
		}
	}
	return all
}

// cleanup undoes everything, and makes sure that nothing is left.
func (b *bench) cleanup(ctx context.Context) error {
	var errs []error
	for _, undo := range slices.Backward(b.undo) {
		errs = append(errs, undo(ctx))
	}
	left, err := kubelet.Leftovers(b.opt.Dir)
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return errors.Join(errs...) // with something mounted in it, the directory must stay
	}
	for _, l := range left {
		if strings.HasPrefix(l, "mount ") || strings.HasPrefix(l, "loop") || strings.HasPrefix(l, "process") {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}
	return os.RemoveAll(b.opt.Dir)
}

// describeMachine says where the run takes place.
func describeMachine(dir string) machine {
	m := machine{CPU: field("/proc/cpuinfo", "model name", ":"), CPUs: runtime.NumCPU()}
	if m.CPU == "" {
		m.CPU = runtime.GOARCH
	}
	kib, _, _ := strings.Cut(field("/proc/meminfo", "MemTotal", ":"), " ")
	if n, err := strconv.ParseInt(kib, 10, 64); err == nil {
		m.RAMBytes = n << 10
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.Filesystem = "a directory"
	if images, err := filepath.Glob(filepath.Join(dir, "*", "*.img")); err == nil && len(images) > 0 {
		m.Filesystem = "XFS in image files"
	}
	return m
}
