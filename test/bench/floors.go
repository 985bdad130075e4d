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
	switch {
	case !r.told():
		return fmt.Errorf("%s, %s: %.2f of the direct loop device, give or take %.0f %%: the rounds spread too wide to tell",
			sideTitles[r.Side], r.Workload, r.Ratio, 100*r.Uncertainty)
	case r.Ratio < r.Floor:
		return fmt.Errorf("%s, %s: %.2f of the direct loop device, the floor is %.2f", sideTitles[r.Side], r.Workload, r.Ratio, r.Floor)
	}
	return nil
}

// told says whether the rounds' ratios tell something: their median is certain
// enough, or at least on which side of the floor it is.
func (r result) told() bool {
	if r.Uncertainty <= tooWide {
		return true
	}
	return r.Floor > 0 && (r.Ratio*(1-r.Uncertainty) >= r.Floor || r.Ratio*(1+r.Uncertainty) < r.Floor)
}
