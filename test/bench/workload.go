package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// workload is one way of using a device.
type workload struct {
	Name  string // in the JSON and for --only
	Title string // in the table
	rw    string // fio's
	block string // fio's
	depth int
	fsync int  // after so many writes; 0: never
	mib   bool // the table has MiB/s, else operations per second
}

// unit is what the results count.
func (w workload) unit() string {
	if w.mib {
		return "MiB/s"
	}
	return "op/s"
}

var workloads = []workload{
	{Name: "randwrite-1", Title: "random write 4 KiB, depth 1", rw: "randwrite", block: "4k", depth: 1},
	{Name: "randwrite-32", Title: "random write 4 KiB, depth 32", rw: "randwrite", block: "4k", depth: 32},
	{Name: "randread-1", Title: "random read 4 KiB, depth 1", rw: "randread", block: "4k", depth: 1},
	{Name: "randread-32", Title: "random read 4 KiB, depth 32", rw: "randread", block: "4k", depth: 32},
	{Name: "write-fsync", Title: "random write 4 KiB + fsync, depth 1", rw: "randwrite", block: "4k", depth: 1, fsync: 1},
	{Name: "seqwrite", Title: "sequential write 1 MiB, depth 4", rw: "write", block: "1m", depth: 4, mib: true},
	{Name: "seqread", Title: "sequential read 1 MiB, depth 4", rw: "read", block: "1m", depth: 4, mib: true},
}

// selectWorkloads picks workloads by name.
func selectWorkloads(only string) ([]workload, error) {
	if only == "" {
		return workloads, nil
	}
	var some []workload
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(workloads, func(w workload) bool { return w.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("--only: there is no workload %q", name)
		}
		some = append(some, workloads[i])
	}
	return some, nil
}

// sample is one measurement.
type sample struct {
	Value  float64 `json:"value"`     // in the workload's unit
	MeanUS float64 `json:"latencyUs"` // mean completion latency, in microseconds
	P99US  float64 `json:"p99Us"`
}

// fioReport is the part of fio's JSON that is used.
type fioReport struct {
	Jobs []struct {
		Error int     `json:"error"`
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	IOPS    float64 `json:"iops"`
	BWBytes float64 `json:"bw_bytes"`
	Latency struct {
		Mean       float64            `json:"mean"`
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// measure runs a workload on a file or device of size bytes.
func measure(ctx context.Context, w workload, path string, o Options) (sample, error) {
	args := []string{
		"--name=bench", "--filename=" + path, "--size=" + strconv.FormatInt(o.SizeBytes, 10), "--direct=1", "--ioengine=io_uring",
		"--rw=" + w.rw, "--bs=" + w.block, "--iodepth=" + strconv.Itoa(w.depth), "--time_based", fmt.Sprintf("--runtime=%dms", o.Runtime.Milliseconds()), fmt.Sprintf("--ramp_time=%dms", o.Warmup.Milliseconds()),
		"--randrepeat=0", "--norandommap", "--output-format=json", "--allow_mounted_write=1",
	}
	if w.fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(w.fsync))
	}
	text, err := fio(ctx, o.Warmup+o.Runtime, args)
	if err != nil {
		return sample{}, err
	}
	return parseFIO(w, text)
}

// fio runs fio for about runtime.
func fio(ctx context.Context, runtime time.Duration, args []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runtime+3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("fio %s: %w\n%s%s", strings.Join(args, " "), err, text, complaints.String())
	}
	return text, nil
}

// parseFIO reads fio's JSON, which may follow warnings.
func parseFIO(w workload, text []byte) (sample, error) {
	_, body, _ := strings.Cut(string(text), "{")
	var r fioReport
	if err := json.Unmarshal([]byte("{"+body), &r); err != nil {
		return sample{}, fmt.Errorf("fio's report: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return sample{}, fmt.Errorf("fio failed: %s", text)
	}
	side := r.Jobs[0].Read
	if strings.Contains(w.rw, "write") {
		side = r.Jobs[0].Write
	}
	s := sample{Value: side.IOPS, MeanUS: side.Latency.Mean / 1e3, P99US: side.Latency.Percentile["99.000000"] / 1e3}
	if w.mib {
		s.Value = side.BWBytes / (1 << 20)
	}
	if s.Value <= 0 {
		return sample{}, fmt.Errorf("fio measured nothing: %s", text)
	}
	return s, nil
}

// fill writes a device once from end to end, so that no measurement allocates.
func fill(ctx context.Context, path string, size int64) error {
	_, err := fio(ctx, time.Minute, []string{
		"--name=fill", "--filename=" + path, "--size=" + strconv.FormatInt(size, 10), "--direct=1", "--ioengine=io_uring", "--rw=write",
		"--bs=1m", "--iodepth=4", "--end_fsync=1", "--allow_mounted_write=1", "--output-format=json",
	})
	return err
}
