package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"testing"
)

var (
	first = flag.Uint64("sim.first", 1, "the first seed")
	seeds = flag.Uint64("sim.seeds", defaultSeeds, "how many")
	all   = flag.Bool("sim.all", false, "print what was reached, and the evidence")
	one   = flag.Uint64("sim.seed", 0, "run this one alone, and tell its history")
)

// TestSeeds runs histories from seeds. A failure names its seed:
// go test ./test/sim -run TestSeeds -sim.seed=N tells everything that happened.
func TestSeeds(t *testing.T) {
	k := newCounts()
	if *one != 0 {
		c := newCluster(*one, k, func(line string) { fmt.Print(line) })
		if c.run(); c.failure != "" {
			t.Fatal(c.failure)
		}
		return
	}
	for seed := *first; seed < *first+*seeds; seed++ {
		c := newCluster(seed, k, nil)
		c.run()
		k.Seeds++
		switch c.kind {
		case "lost":
			k.Lost++
		case "diverged":
			k.Diverged++
		case "stuck":
			k.Stuck++
		}
		if c.failure != "" {
			t.Errorf("seed %d: %s: %s", seed, c.kind, c.failure)
			if k.Lost+k.Diverged+k.Stuck >= 3 {
				break
			}
		}
	}
	out := os.Stdout
	if !*all {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		out = null
	}
	for _, m := range k.report(out) {
		if k.Seeds >= 500 {
			t.Errorf("never reached: %s", m)
		}
	}
	if !*all {
		return
	}
	line, err := json.Marshal(map[string]int64{
		"seeds": k.Seeds, "writes": k.Writes, "reads": k.Reads, "flushes": k.Flushes, "trims": k.Trims, "faults": k.faultsTotal(),
		"lost": k.Lost, "diverged": k.Diverged, "stuck": k.Stuck,
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("EVIDENCE %s\n", line)
}

// TestSameSeedSameRun: a seed is the whole history.
func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		var runs [2]uint64
		for i := range runs {
			c := newCluster(seed, newCounts(), nil)
			c.digest = fnv.New64a()
			c.run()
			runs[i] = c.digest.Sum64()
		}
		if runs[0] != runs[1] {
			t.Errorf("seed %d: two runs differ", seed)
		}
	}
}
