package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// replicas has the volume have so many replicas, all in sync.
func (r *repairBench) replicas(ctx context.Context, v kubelet.Volume, n int) error {
	if err := r.admin(ctx, "replicas", v.ID, strconv.Itoa(n)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, inSyncTimeout)
	defer cancel()
	return kubelet.Await(ctx, fmt.Sprintf("%d replicas in sync", n), func(ctx context.Context) error {
		o, err := r.cluster.Volume(ctx, v)
		if err == nil && (len(o.Status.Replicas) != n || o.CountState(volume.InSync) != n || len(o.Status.Retired) > 0) {
			err = fmt.Errorf("%d of %d are in sync, %d are being removed", o.CountState(volume.InSync), len(o.Status.Replicas), len(o.Status.Retired))
		}
		return err
	})
}

const logTimeout = 10 * time.Second

// admin runs the administrator's command.
func (r *repairBench) admin(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(r.opt.Bin, "kubectl-holdfast"), append(args, "--dir", r.cluster.Dir())...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl-holdfast %v: %w: %s", args, err, out)
	}
	return nil
}

func (r *repairBench) pidOf(ctx context.Context, name string) (int, error) {
	all, err := r.cluster.Processes(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.Name == name && p.Running {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("there is no process %s", name)
}

// state is the store's word on the replica that goes and comes.
func (r *repairBench) state(ctx context.Context, v kubelet.Volume) (volume.ReplicaState, error) {
	o, err := r.cluster.Volume(ctx, v)
	if err != nil {
		return "", err
	}
	for _, m := range o.Status.Replicas {
		if m.State != volume.InSync {
			return m.State, nil
		}
	}
	return volume.InSync, nil
}

// await waits until the store says so of the one replica, or that all are in sync.
func (r *repairBench) await(ctx context.Context, v kubelet.Volume, want volume.ReplicaState) error {
	ctx, cancel := context.WithTimeout(ctx, inSyncTimeout)
	defer cancel()
	return kubelet.Await(ctx, "a replica to be "+string(want), func(ctx context.Context) error {
		s, err := r.state(ctx, v)
		if err == nil && s != want {
			err = fmt.Errorf("it is %s", s)
		}
		return err
	})
}

// resynced is what the mirror's log says of a resync.
type resynced struct {
	compared, copied int64
	took             time.Duration
}

// logMark is how long the log of the node that uses the volumes is.
func (r *repairBench) logMark() int64 {
	st, err := os.Stat(r.nodeLog())
	if err != nil {
		return 0
	}
	return st.Size()
}

func (r *repairBench) nodeLog() string { return filepath.Join(r.cluster.Dir(), node, "log") }

var resyncedLine = regexp.MustCompile(`msg="replica resynced".* comparedBytes=(\d+) copiedBytes=(\d+) took=(\S+)`)

// resynced reads the last resync's figures from the log, after a mark.
func (r *repairBench) resynced(from int64) (resynced, error) {
	b, err := os.ReadFile(r.nodeLog())
	if err != nil {
		return resynced{}, err
	}
	return parseResynced(string(b[min(from, int64(len(b))):]))
}

// awaitResynced waits for that: the store knows before the log does.
func (r *repairBench) awaitResynced(ctx context.Context, from int64) (done resynced, err error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	err = kubelet.Await(ctx, "the log to tell of the resync", func(context.Context) (err error) {
		done, err = r.resynced(from)
		return err
	})
	return done, err
}

func parseResynced(log string) (d resynced, err error) {
	all := resyncedLine.FindAllStringSubmatch(log, -1)
	if len(all) == 0 {
		return d, errors.New("the log tells of no resync")
	}
	m := all[len(all)-1]
	d.compared, _ = strconv.ParseInt(m[1], 10, 64) // digits only
	d.copied, _ = strconv.ParseInt(m[2], 10, 64)
	d.took, err = time.ParseDuration(m[3])
	return d, err
}
