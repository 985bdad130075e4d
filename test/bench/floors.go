package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The sides, in the table's order. sideLoop is what all others are compared
// with.
const (
	sideRaw       = "raw"
	sideLoop      = "loop"
	sideLoopCache = "loop-buffered"
	sideOne       = "one"
	sideThree     = "three"
	sideThreeNone = "three-none"
)

// sideTitles are the sides' names in the table.
var sideTitles = map[string]string{
	sideRaw: "raw file", sideLoop: "loop, direct I/O", sideLoopCache: "loop, buffered I/O",
	sideOne: "Holdfast, 1 local replica", sideThree: "Holdfast, 3 replicas, writeback", sideThreeNone: "Holdfast, 3 replicas, none",
}

// selectSides picks sides by name; the one that all are compared with is always
// among them.
func selectSides(only string) (map[string]bool, error) {
	picked := map[string]bool{sideLoop: true}
	if only == "" {
		only = strings.Join(slices.Collect(maps.Keys(sideTitles)), ",")
	}
	for name := range strings.SplitSeq(only, ",") {
		if sideTitles[name] == "" {
			return nil, fmt.Errorf("--sides: there is no side %q", name)
		}
		picked[name] = true
	}
	return picked, nil
}

// floors are the least ratios to sideLoop that the project promises, by side
// and workload.
var floors = map[string]map[string]float64{
	sideOne: {
		"randwrite-1": 0.95, "randwrite-32": 0.95, "randread-1": 0.95, "randread-32": 0.95,
		"write-fsync": 0.95, "seqwrite": 0.95, "seqread": 0.95,
	},
	sideThree: {
		"randwrite-1": 0.6, "randwrite-32": 0.4, "randread-1": 0.9, "randread-32": 0.9, "seqwrite": 0.22,
	},
	sideThreeNone: {"randread-1": 0.7, "randread-32": 0.7},
}

// Limits of a node process with idle volumes.
const (
	idleMemoryBytes = 120 << 20
	idleCores       = 0.01
)

// verdict says whether a result holds its floor.
func (r result) verdict() error {
	floor := floors[r.Side][r.Workload] // 0: none is promised
	switch {
	case r.RatioSpread > tooWide:
		return fmt.Errorf("%s, %s: the middle half of the rounds' ratios spreads by %.0f %%, too wide to tell", sideTitles[r.Side], r.Workload, 100*r.RatioSpread)
	case r.Ratio < floor:
		return fmt.Errorf("%s, %s: %.2f of the direct loop device, the floor is %.2f", sideTitles[r.Side], r.Workload, r.Ratio, floor)
	}
	return nil
}
