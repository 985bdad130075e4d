package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The proofs are tests, for they look into the machine; this program builds them
// and takes their counts from one line that begins with this word.
const evidenceWord = "EVIDENCE "

// build compiles a package's tests and returns the program.
func build(ctx context.Context, dir, pkg string, tags ...string) (string, error) {
	bin := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", strings.Join(tags, ","), "-o", bin, "./"+pkg)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w", pkg, err)
	}
	return bin, nil
}

// job is one run of a test program.
type job struct {
	bin, pkg string
	args     []string
	env      []string
	out      io.Writer
}

// do runs a job and returns the counts that it printed.
func (j job) do(ctx context.Context) (map[string]int64, error) {
	bin, err := filepath.Abs(j.bin)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, bin, j.args...)
	cmd.Dir = j.pkg
	cmd.Env = append(append(os.Environ(), "GOGC=400", "GOMEMLIMIT=4GiB"), j.env...)
	cmd.WaitDelay = 5 * time.Second
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = j.out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	counts := map[string]int64{}
	s := bufio.NewScanner(pipe)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		line := s.Text()
		if rest, ok := strings.CutPrefix(line, evidenceWord); ok {
			if err := json.Unmarshal([]byte(rest), &counts); err != nil {
				return nil, errors.Join(err, cmd.Wait())
			}
			continue
		}
		if line != "PASS" {
			fmt.Fprintln(j.out, line)
		}
	}
	return counts, cmd.Wait()
}

// scratch makes a directory for what is built.
func scratch() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "proof")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}

const (
	corePackage = "pkg/mirror/core"
	simPackage  = "test/sim"
)

func explore(ctx context.Context, evidence string) error {
	dir, remove, err := scratch()
	if err != nil {
		return err
	}
	defer remove()
	bin, err := build(ctx, dir, corePackage)
	if err != nil {
		return err
	}
	began := time.Now()
	counts, err := job{bin: bin, pkg: corePackage, out: os.Stdout, args: []string{"-test.run=^TestExplore$", "-test.v", "-test.timeout=30m", "-explore"}}.do(ctx)
	if err != nil {
		return fmt.Errorf("explore: %w", err)
	}
	if err := note(ctx, evidence, record{Kind: "explore", Counts: counts, Seconds: time.Since(began).Seconds()}); err != nil {
		return err
	}
	if counts["states"] < 1_000_000 {
		return fmt.Errorf("only %d states were explored; the proof asks for 1,000,000", counts["states"])
	}
	fmt.Printf("explore: %d states, %d violations\n", counts["states"], counts["violations"])
	return nil
}

func simulate(ctx context.Context, evidence string, first, seeds uint64) error {
	if first == 0 {
		records, err := read(evidence)
		if err != nil {
			return err
		}
		first = 1
		for _, r := range records {
			if r.Kind == "sim" {
				first = max(first, r.FirstSeed+uint64(r.Counts["seeds"]))
			}
		}
	}
	dir, remove, err := scratch()
	if err != nil {
		return err
	}
	defer remove()
	bin, err := build(ctx, dir, simPackage)
	if err != nil {
		return err
	}
	began := time.Now()
	counts, err := job{bin: bin, pkg: simPackage, out: os.Stdout, args: []string{
		"-test.run=^TestSeeds$", "-test.timeout=24h", "-sim.all",
		"-sim.first=" + strconv.FormatUint(first, 10), "-sim.seeds=" + strconv.FormatUint(seeds, 10),
	}}.do(ctx)
	if err != nil {
		return fmt.Errorf("sim: %w", err)
	}
	if err := note(ctx, evidence, record{Kind: "sim", FirstSeed: first, Counts: counts, Seconds: time.Since(began).Seconds()}); err != nil {
		return err
	}
	fmt.Printf("sim: %d seeds, %d writes, %d faults, %d lost, %d diverged, %d stuck\n",
		counts["seeds"], counts["writes"], counts["faults"], counts["lost"], counts["diverged"], counts["stuck"])
	return nil
}
