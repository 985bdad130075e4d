package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const (
	comes          = "n3" // the node whose replica goes and comes
	inSyncTimeout  = 10 * time.Minute
	bytesPerHashed = volume.HashUnit / volume.HashBytes // 1 byte of hash for so many compared
	nbdHeaders     = 28 + 16                            // of one write and its answer
)

// cold compares random writes to regions without intent bits with the same by a
// build that keeps none. Both use the same volume, one after the other, in turn.
func (r *repairBench) cold(ctx context.Context) (err error) {
	const dir = "cold"
	room := r.o.ColdBytes + 2<<30
	first, later := newFigure("cold-first"), newFigure("cold")
	var v kubelet.Volume
	for round := range r.o.Rounds {
		sides := []struct {
			bin  string
			into func(*figure, float64)
		}{
			{r.opt.Bin, func(f *figure, x float64) { f.Values = append(f.Values, x) }},
			{r.o.NoBitmap, func(f *figure, x float64) { f.References = append(f.References, x) }},
		}
		if round%2 == 1 {
			sides[0], sides[1] = sides[1], sides[0]
		}
		for _, s := range sides {
			from := len(r.undo)
			if err := r.start(ctx, s.bin, dir, room); err != nil {
				return err
			}
			if v.ID == "" {
				if v, err = r.cluster.Controller().Create(ctx, kubelet.Spec{Name: dir, SizeBytes: r.o.ColdBytes, Params: map[string]string{"replicas": "3"}, Block: true, On: node}); err != nil {
					return err
				}
			}
			path, err := r.cluster.Node(node).Attach(ctx, v)
			if err != nil {
				return err
			}
			r.undo = append(r.undo, func(ctx context.Context) error { return r.cluster.Node(node).Detach(ctx, v) })
			if round == 0 && len(first.Values)+len(first.References) == 0 {
				r.say("filling cold: %d MiB, 3 replicas", r.o.ColdBytes>>20)
				if err := fill(ctx, path, r.o.ColdBytes); err != nil {
					return err
				}
				// Again from the beginning: the fill has warmed every region.
				if err := errors.Join(r.cluster.Node(node).Detach(ctx, v), second(r.cluster.Node(node).Attach(ctx, v))); err != nil {
					return err
				}
			}
			unix.Sync()
			for _, f := range []*figure{first, later} {
				got, err := r.app(ctx, path, r.o.ColdBytes, r.o.ColdTime)
				if err != nil {
					return err
				}
				s.into(f, got.Value)
			}
			if err := r.finish(ctx, from); err != nil {
				return err
			}
		}
		r.say("cold, round %d: %s; %s", round+1, first.last(), later.last())
	}
	r.report.add(first, later)
	return nil
}

func second[T any](_ T, err error) error { return err }

// app is an application: random writes of 4 KiB at depth 32.
func (r *repairBench) app(ctx context.Context, path string, size int64, runtime time.Duration) (sample, error) {
	o := r.opt
	o.SizeBytes, o.Runtime, o.Warmup = size, runtime, 0 // the first moments are a part of it
	return measure(ctx, workload{Name: "app", rw: "randwrite", block: "4k", depth: 32}, path, o)
}

// missed counts what moves to a replica that was away for some scattered writes.
func (r *repairBench) missed(ctx context.Context) error {
	from := len(r.undo)
	if err := r.start(ctx, r.opt.Bin, "missed", r.o.MissedOver/2+r.o.MissedBytes*4+1<<30); err != nil {
		return err
	}
	moved, took := newFigure("missed"), newFigure("missed-time")
	for round := range r.o.Rounds {
		one := len(r.undo)
		v, path, err := r.used(ctx, fmt.Sprint("missed ", round), r.o.MissedOver, 0, "3")
		if err != nil {
			return err
		}
		if err := r.cluster.Do(ctx, "kill", comes); err != nil {
			return err
		}
		if _, err := fio(ctx, time.Minute, []string{
			"--name=missed", "--filename=" + path, "--size=" + strconv.FormatInt(r.o.MissedOver, 10), "--io_size=" + strconv.FormatInt(r.o.MissedBytes, 10),
			"--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--randrepeat=0", "--end_fsync=1", "--allow_mounted_write=1", "--output-format=json",
		}); err != nil {
			return err
		}
		if err := r.await(ctx, v, volume.Outdated); err != nil {
			return err
		}
		began := r.logMark()
		if err := r.cluster.Do(ctx, "start", comes); err != nil {
			return err
		}
		if err := r.await(ctx, v, volume.InSync); err != nil {
			return err
		}
		done, err := r.awaitResynced(ctx, began)
		if err != nil {
			return err
		}
		bytes := done.copied + done.compared/bytesPerHashed + done.copied/4096*nbdHeaders
		moved.Values = append(moved.Values, float64(bytes)/(1<<20))
		took.Values = append(took.Values, done.took.Seconds())
		r.say("missed, round %d: %s in %s; %d MiB compared, %d MiB copied", round+1, moved.last(), took.last(), done.compared>>20, done.copied>>20)
		if err := r.finish(ctx, one); err != nil {
			return err
		}
	}
	r.report.add(moved, took)
	return r.finish(ctx, from)
}

// rebuild compares the rebuild of a replica with a plain copy of a file of the
// same size in the pool, and an application's I/O beside a rebuild with the same
// while all replicas are in sync.
func (r *repairBench) rebuild(ctx context.Context) error {
	from := len(r.undo)
	if err := r.start(ctx, r.opt.Bin, "rebuild", 2*r.o.Rebuild+2<<30); err != nil {
		return err
	}
	v, path, err := r.used(ctx, "rebuild", r.o.Rebuild, r.o.Rebuild, "3")
	if err != nil {
		return err
	}
	speed, throughput, p99, beside := newFigure("rebuild"), newFigure("app-throughput"), newFigure("app-p99"), newFigure("rebuild-beside")
	mibs := float64(r.o.Rebuild) / (1 << 20)
	for round := range r.o.Rounds {
		copying, err := r.copyImage(ctx, v)
		if err != nil {
			return err
		}
		done, err := r.rebuildOnce(ctx, v, func() error { return nil })
		if err != nil {
			return err
		}
		speed.Values, speed.References = append(speed.Values, mibs/done.took.Seconds()), append(speed.References, mibs/copying.Seconds())
		unix.Sync()
		without, err := r.app(ctx, path, r.o.Rebuild, r.o.AppTime)
		if err != nil {
			return err
		}
		var with sample
		running := true
		done, err = r.rebuildOnce(ctx, v, func() (err error) {
			with, err = r.app(ctx, path, r.o.Rebuild, r.o.AppTime)
			if now, derr := r.state(ctx, v); derr == nil {
				running = now != volume.InSync
			}
			return err
		})
		if err != nil {
			return err
		}
		if !running {
			return errors.New("the rebuild ended before the application: take a larger --repair-rebuild or a shorter --repair-app-time")
		}
		throughput.Values, throughput.References = append(throughput.Values, with.Value), append(throughput.References, without.Value)
		p99.Values, p99.References = append(p99.Values, with.P99US), append(p99.References, without.P99US)
		beside.Values = append(beside.Values, mibs/done.took.Seconds())
		r.say("rebuild, round %d: %s; %s; %s; %s", round+1, speed.last(), throughput.last(), p99.last(), beside.last())
	}
	r.report.add(speed, throughput, p99, beside)
	return r.finish(ctx, from)
}

// rebuildOnce has the volume do without one replica, and make it anew; meanwhile
// runs while it is being copied.
func (r *repairBench) rebuildOnce(ctx context.Context, v kubelet.Volume, meanwhile func() error) (resynced, error) {
	if err := r.replicas(ctx, v, 2); err != nil {
		return resynced{}, err
	}
	unix.Sync()
	began := r.logMark()
	if err := r.admin(ctx, "replicas", v.ID, "3"); err != nil {
		return resynced{}, err
	}
	err := kubelet.Await(ctx, "the rebuild to begin", func(ctx context.Context) error {
		o, err := r.cluster.Volume(ctx, v)
		if err == nil && len(o.Status.Replicas) < 3 {
			err = errors.New("there is no new replica yet")
		}
		return err
	})
	if err == nil {
		err = meanwhile()
	}
	if err == nil {
		err = r.replicas(ctx, v, 3)
	}
	if err != nil {
		return resynced{}, err
	}
	return r.awaitResynced(ctx, began)
}

// copyImage copies the volume's image within the pool, as cp would, and has it
// written to the disk. Neither file is in the page cache before.
func (r *repairBench) copyImage(ctx context.Context, v kubelet.Volume) (took time.Duration, err error) {
	o, err := r.cluster.Volume(ctx, v)
	if err != nil {
		return 0, err
	}
	path := r.cluster.Image(o, node)
	src, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	to := filepath.Join(r.cluster.PoolPath(node), "bench-copy")
	dst, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.Close(), os.Remove(to)) }()
	unix.Sync()
	_ = unix.Fadvise(int(src.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint
	began := time.Now()
	// Without ReaderFrom and WriterTo: a copy that the filesystem makes by sharing
	// blocks copies nothing.
	if _, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20)); err != nil {
		return 0, err
	}
	err = dst.Sync()
	took = time.Since(began)
	_ = unix.Fadvise(int(src.Fd()), 0, 0, unix.FADV_DONTNEED) // the rebuild reads it from the disk, too
	return took, err
}

// silent stops a node's process while an application writes, and waits for the
// store to say that its replica is out of date.
func (r *repairBench) silent(ctx context.Context) error {
	from := len(r.undo)
	if err := r.start(ctx, r.opt.Bin, "silent", 2<<30); err != nil {
		return err
	}
	v, path, err := r.used(ctx, "silent", 256<<20, 256<<20, "3")
	if err != nil {
		return err
	}
	f := newFigure("silent")
	for round := range r.o.Rounds {
		pid, err := r.pidOf(ctx, comes)
		if err != nil {
			return err
		}
		actx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = r.app(actx, path, 256<<20, 30*time.Second) // it is interrupted
		}()
		took, err := r.stopUntilNoticed(ctx, v, pid)
		stop()
		<-ended
		if err != nil {
			return err
		}
		f.Values = append(f.Values, took.Seconds())
		r.say("silent, round %d: %s", round+1, f.last())
		if err := r.await(ctx, v, volume.InSync); err != nil {
			return err
		}
	}
	r.report.add(f)
	return r.finish(ctx, from)
}

func (r *repairBench) stopUntilNoticed(ctx context.Context, v kubelet.Volume, pid int) (took time.Duration, err error) {
	if err := pause(ctx, time.Second); err != nil { // the application has begun
		return 0, err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return 0, err
	}
	began := time.Now()
	defer func() { err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) }()
	err = r.await(ctx, v, volume.Outdated)
	return time.Since(began), err
}
