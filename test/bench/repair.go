package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// RepairOptions are for measuring what replication costs when replicas come and
// go: bench --repair. It has rounds of its own, for most of what it measures
// takes much longer than a workload.
type RepairOptions struct {
	On          bool
	NoBitmap    string // directory with commands built with the tag nobitmap; "" skips that comparison
	Rounds      int
	ColdBytes   int64
	ColdTime    time.Duration
	MissedBytes int64
	MissedOver  int64
	Rebuild     int64
	AppTime     time.Duration
	Only        string
	Doc         string
}

// AddFlags binds the options to the command line.
func (o *RepairOptions) AddFlags(fs *flag.FlagSet) {
	fs.BoolVar(&o.On, "repair", false, "measure resync and rebuild instead of the workloads")
	fs.StringVar(&o.NoBitmap, "repair-nobitmap", "", "directory with the commands built with the tag nobitmap, for comparison")
	fs.IntVar(&o.Rounds, "repair-rounds", 3, "rounds")
	fs.Int64Var(&o.ColdBytes, "repair-cold-size", 8<<30, "bytes of the volume whose regions are cold")
	fs.DurationVar(&o.ColdTime, "repair-cold-time", 10*time.Second, "time before, and of, that measurement")
	fs.Int64Var(&o.MissedBytes, "repair-missed", 64<<20, "bytes that a replica misses, in writes of 4 KiB")
	fs.Int64Var(&o.MissedOver, "repair-missed-over", 10<<30, "bytes over which they are scattered")
	fs.Int64Var(&o.Rebuild, "repair-rebuild", 4<<30, "bytes allocated of a replica that is rebuilt")
	fs.DurationVar(&o.AppTime, "repair-app-time", 10*time.Second, "time for which an application runs beside a rebuild")
	fs.StringVar(&o.Only, "repair-only", "", "comma-separated: cold, missed, rebuild, silent; default: all")
	fs.StringVar(&o.Doc, "repair-doc", "", "file in which the table replaces what stands between "+tableBegin+" and "+tableEnd)
}

// Validate reports all faults.
func (o *RepairOptions) Validate() error {
	var errs []error
	if o.Rounds < 1 || o.ColdTime < time.Second || o.AppTime < time.Second {
		errs = append(errs, errors.New("at least one round, and a second for each measurement"))
	}
	for _, n := range []int64{o.ColdBytes, o.MissedBytes, o.MissedOver, o.Rebuild} {
		if n < 4<<20 || n%(1<<20) != 0 {
			errs = append(errs, fmt.Errorf("%d bytes: a multiple of 1 MiB from 4 MiB on is needed", n))
		}
	}
	for _, name := range o.parts() {
		if repairParts[name] == nil {
			errs = append(errs, fmt.Errorf("--repair-only: there is no %q", name))
		}
	}
	if o.Doc != "" {
		errs = append(errs, checkReadme(o.Doc))
	}
	return errors.Join(errs...)
}

func (o *RepairOptions) parts() []string {
	if o.Only == "" {
		return []string{"cold", "missed", "rebuild", "silent"}
	}
	return strings.Split(o.Only, ",")
}

// repairParts are what is measured, by name. Each does all its rounds and leaves
// nothing behind but its results.
var repairParts = map[string]func(*repairBench, context.Context) error{
	"cold": (*repairBench).cold, "missed": (*repairBench).missed, "rebuild": (*repairBench).rebuild, "silent": (*repairBench).silent,
}

// repairBench is one run.
type repairBench struct {
	*bench
	o      RepairOptions
	report repairReport
}

// runRepair measures, reports and cleans up, whatever happens.
func runRepair(ctx context.Context, o Options, out io.Writer) (err error) {
	r := &repairBench{bench: &bench{opt: o, out: out}, o: o.Repair}
	if r.opt.Dir == "" {
		r.opt.Dir, err = os.MkdirTemp("/var/tmp", "holdfast-bench-")
	} else {
		err = os.Mkdir(r.opt.Dir, 0o755)
	}
	if err != nil {
		return err
	}
	err = r.all(ctx)
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(err, r.cleanup(cctx))
}

func (r *repairBench) all(ctx context.Context) error {
	r.report = repairReport{Began: time.Now().UTC(), LoadBegin: load(), Rounds: r.o.Rounds, Options: r.o}
	for _, name := range r.o.parts() {
		if name == "cold" && r.o.NoBitmap == "" {
			r.say("cold: left out, for there is no build without the bitmap to compare with")
			continue
		}
		began := time.Now()
		if err := repairParts[name](r, ctx); err != nil {
			if r.cluster != nil && ctx.Err() == nil {
				r.say("the last lines of the logs:\n%s", r.cluster.Tails(15))
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.RemoveAll(filepath.Join(r.opt.Dir, name)); err != nil { // the next one needs the room
			return err
		}
		r.say("%s took %s", name, time.Since(began).Round(time.Second))
	}
	r.report.LoadEnd = load()
	table := r.report.table()
	r.say("\n%s", table)
	if r.opt.JSON != "" {
		if err := r.report.writeJSON(r.opt.JSON); err != nil {
			return err
		}
	}
	if r.o.Doc != "" {
		if err := writeReadme(r.o.Doc, table); err != nil {
			return err
		}
	}
	return r.report.verdict()
}

// start starts a Holdfast from a directory of commands, in a directory that may
// have one from before.
func (r *repairBench) start(ctx context.Context, bin, dir string, poolBytes int64) (err error) {
	r.cluster, err = kubelet.Start(ctx, kubelet.Options{Bin: bin, Dir: filepath.Join(r.opt.Dir, dir), PoolSize: fmt.Sprintf("%dMi", poolBytes>>20)})
	if err != nil {
		return err
	}
	r.undo = append(r.undo, r.cluster.Stop)
	r.report.Machine = describeMachine(r.cluster.Dir())
	return nil
}

// finish undoes all that was done since there were so many steps to undo.
func (r *repairBench) finish(ctx context.Context, from int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	var errs []error
	for len(r.undo) > from {
		last := len(r.undo) - 1
		undo := r.undo[last]
		r.undo = r.undo[:last]
		errs = append(errs, undo(ctx))
	}
	return errors.Join(errs...)
}

// used creates a volume, attaches it to the node, and fills so much of it.
func (r *repairBench) used(ctx context.Context, name string, size, filled int64, replicas string) (v kubelet.Volume, path string, err error) {
	path, err = r.addVolume(ctx, kubelet.Spec{Name: name, SizeBytes: size, Params: map[string]string{"replicas": replicas}, Block: true, On: node})
	if err != nil {
		return v, "", err
	}
	v = r.volumes[len(r.volumes)-1]
	if filled > 0 {
		r.say("filling %s: %d MiB, %s replicas", name, filled>>20, replicas)
		err = fill(ctx, path, filled)
	}
	return v, path, err
}
