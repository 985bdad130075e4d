package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const (
	stepTimeout    = 60 * time.Second
	cleanupTimeout = 100 * time.Second
	logLines       = 15
	// poolSize holds what the demo writes, and is set aside on the disk for each
	// node where its filesystem has no reflink.
	poolSize = "4Gi"
)

// demo is one run.
type demo struct {
	*report
	opt     Options
	cluster *kubelet.Standalone
	volumes []kubelet.Volume // created and not yet deleted
	undo    []func()         // what a failure half way has to undo before the standalone stops
}

// run does everything and cleans up, whatever happened.
func run(ctx context.Context, o Options, out io.Writer) (err error) {
	d := &demo{report: newReport(out), opt: o}
	if err := d.makeDir(); err != nil {
		return err
	}
	err = d.story(ctx)
	if err == nil && o.Keep {
		took := d.elapsed()
		d.howToTalk()
		d.line("\ndemo: PASS in %.0f s", math.Ceil(took.Seconds()))
		return nil
	}
	switch {
	case ctx.Err() != nil:
		d.line("\ninterrupted: %v", err)
	case err != nil:
		d.line("\nfailed: %v", err)
		if d.cluster != nil {
			d.line("the last lines of the logs:\n%s", d.cluster.Tails(logLines))
		}
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	cleanupErr := d.cleanup(cctx)
	if cleanupErr != nil {
		d.line("\nfailed: %v", cleanupErr)
	}
	took := math.Ceil(d.elapsed().Seconds())
	if err != nil || cleanupErr != nil {
		return fmt.Errorf("FAIL after %.0f s", took)
	}
	d.line("\ndemo: PASS in %.0f s", took)
	return nil
}

// makeDir makes the directory: not below /tmp, which may be in memory. The
// kernel shows real paths, so a symbolic link is resolved.
func (d *demo) makeDir() (err error) {
	if d.opt.Dir == "" {
		d.opt.Dir, err = os.MkdirTemp("/var/tmp", "holdfast-demo-")
	} else {
		err = os.MkdirAll(d.opt.Dir, 0o755)
	}
	if err == nil {
		d.opt.Dir, err = filepath.EvalSymlinks(d.opt.Dir)
	}
	return err
}

// story is the main job.
func (d *demo) story(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	files := &filesystem{seed: 1}
	kept, err := d.mirrored(ctx, "files", files)
	if err != nil {
		return err
	}
	if _, err := d.mirrored(ctx, "block", &raw{seed: 2}); err != nil {
		return err
	}
	if err := d.local(ctx); err != nil {
		return err
	}
	if err := d.bareImage(ctx, kept, files); err != nil {
		return err
	}
	if d.opt.Keep {
		return d.leaveMounted(ctx, kept)
	}
	return d.deleteAll(ctx)
}

func (d *demo) start(ctx context.Context) error {
	d.chapter("A three-node Holdfast on this machine")
	return d.timed(ctx, "start store, controller and nodes n1, n2, n3, each a process of its own, in "+d.opt.Dir, func(ctx context.Context) (err error) {
		d.cluster, err = kubelet.Start(ctx, kubelet.Options{Bin: d.opt.Bin, Dir: filepath.Join(d.opt.Dir, "standalone"), PoolSize: poolSize, Outlives: d.opt.Keep})
		if err != nil {
			return err
		}
		return d.showProcesses(ctx)
	})
}

// timed is a step with a deadline.
func (d *demo) timed(ctx context.Context, title string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.step(title, func() error { return do(ctx) })
}

func (d *demo) showProcesses(ctx context.Context) error {
	procs, err := d.cluster.Processes(ctx)
	if err != nil {
		return err
	}
	for _, p := range procs {
		d.say("%-10s pid %-7d %s", p.Name, p.PID, p.Socket)
	}
	return nil
}

func (d *demo) create(ctx context.Context, s kubelet.Spec) (kubelet.Volume, error) {
	v, err := d.cluster.Controller().Create(ctx, s)
	if err != nil {
		return v, err
	}
	d.volumes = append(d.volumes, v)
	o, err := d.cluster.Volume(ctx, v)
	if err != nil {
		return v, err
	}
	var on []string
	for _, r := range o.Status.Replicas {
		on = append(on, string(r.Node))
	}
	d.say("%s: %s, replicas on %s", v.ID, gib(v.SizeBytes), strings.Join(on, ", "))
	return v, nil
}

func (d *demo) deleteAll(ctx context.Context) error {
	d.chapter("Delete everything")
	for len(d.volumes) > 0 {
		v := d.volumes[0]
		err := d.timed(ctx, "DeleteVolume "+v.Spec.Name, func(ctx context.Context) error {
			return d.cluster.Controller().Delete(ctx, v)
		})
		if err != nil {
			return err
		}
		d.volumes = d.volumes[1:]
	}
	return d.timed(ctx, "no volume and no replica is left", func(ctx context.Context) error {
		return kubelet.Await(ctx, "the last replica to go", d.nothingStored)
	})
}

// nothingStored says whether all volumes and replicas are gone. The store keeps
// tombstones for a while, which list no replica.
func (d *demo) nothingStored(ctx context.Context) error {
	list, err := d.cluster.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.Status.Phase != volume.PhaseDeleting || len(v.Status.Replicas) > 0 {
			return fmt.Errorf("the store still has volume %s, %s, with %d replicas", v.Spec.Name, v.Status.Phase, len(v.Status.Replicas))
		}
	}
	ids, err := d.cluster.Controller().List(ctx)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("ListVolumes still shows %v", ids)
	}
	images, err := filepath.Glob(filepath.Join(d.cluster.Dir(), "*", "pool", "replicas", "*"))
	if err == nil && len(images) > 0 {
		err = fmt.Errorf("still there: %v", images)
	}
	return err
}

// cleanup stops everything and makes sure that nothing is left.
func (d *demo) cleanup(ctx context.Context) error {
	d.chapter("Stop, and look whether anything is left")
	var errs []error
	for len(d.undo) > 0 {
		last := len(d.undo) - 1
		d.undo[last]()
		d.undo = d.undo[:last]
	}
	if d.cluster != nil {
		errs = append(errs, d.step("stop all processes", func() error { return d.cluster.Stop(ctx) }))
	}
	errs = append(errs, d.step("no process, mount, loop device or file is left", func() error {
		if err := removeUnmounted(d.opt.Dir); err != nil {
			return err
		}
		left, err := kubelet.Leftovers(d.opt.Dir)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return err
	}))
	return errors.Join(errs...)
}

// removeUnmounted removes a directory, unless something is mounted in it.
func removeUnmounted(dir string) error {
	left, err := kubelet.Leftovers(dir)
	if err != nil {
		return err
	}
	for _, l := range left {
		if strings.HasPrefix(l, "mount ") {
			return fmt.Errorf("left behind: %s", strings.Join(left, "\n"))
		}
	}
	return os.RemoveAll(dir)
}
