package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const (
	idleSettle = 10 * time.Second // for caches to be given back
	idleTime   = 30 * time.Second
	// ticksPerSecond is USER_HZ, in which /proc counts; it is 100 on every
	// architecture that Go knows.
	ticksPerSecond = 100
)

// measureIdle stages volumes until there are as many as asked for, and measures
// the node process that serves them, while nobody uses them. It has served the
// whole load before.
func (b *bench) measureIdle(ctx context.Context) (*idle, error) {
	b.say("staging idle volumes")
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	for b.served() < b.opt.Idle {
		_, err := b.addVolume(setup, kubelet.Spec{
			Name: fmt.Sprintf("idle %d", len(b.volumes)), SizeBytes: 512 << 20, Params: map[string]string{"replicas": "3"}, FSType: "xfs", On: node,
		})
		if err != nil {
			return nil, err
		}
	}
	pid, err := b.pid(ctx)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, idleSettle); err != nil {
		return nil, err
	}
	before, err := processTime(pid)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := pause(ctx, idleTime); err != nil {
		return nil, err
	}
	after, err := processTime(pid)
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	kib, _, _ := strings.Cut(field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS", ":"), " ")
	memory, err := strconv.ParseInt(kib, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	return &idle{Volumes: b.served(), MemoryBytes: memory << 10, Cores: (after - before).Seconds() / took, Seconds: took}, nil
}

// served counts the volumes that need the node's process; those with a single
// local replica do not.
func (b *bench) served() int {
	n := 0
	for _, v := range b.volumes {
		if v.Spec.Params["locality"] != "strict" {
			n++
		}
	}
	return n
}

// pid is the node's process.
func (b *bench) pid(ctx context.Context) (int, error) {
	all, err := b.cluster.Processes(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.Name == node {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("there is no process %s", node)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// processTime is the CPU time that a process has used (proc_pid_stat(5)).
func processTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessTime(string(b))
}

func parseProcessTime(stat string) (time.Duration, error) {
	// The name in parentheses may hold anything, blanks too.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("process state %q has too few fields", stat)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process state %q: %w", stat, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}
