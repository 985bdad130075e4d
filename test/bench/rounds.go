package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is for the disk, once everything is written back, before the next
// measurement begins.
const settleTime = 300 * time.Millisecond

// measureAll does the rounds: all workloads at first, then those of which a side
// spreads too wide to tell, until none does or time is up.
func (b *bench) measureAll(ctx context.Context, cases []workload) error {
	began, orders := time.Now(), balanced(len(b.sides))
	for round := 0; round < b.opt.MaxRounds; round++ {
		if round >= b.opt.Rounds {
			cases = slices.DeleteFunc(slices.Clone(cases), b.settled)
			if len(cases) == 0 || time.Since(began) > b.opt.Limit {
				break
			}
		}
		start := time.Now()
		for _, w := range cases {
			if err := b.measureRound(ctx, w, orders[round%len(orders)]); err != nil {
				return fmt.Errorf("round %d: %w", round+1, err)
			}
		}
		b.report.Rounds = min(round+1, b.opt.Rounds)
		b.say("round %d of %d workloads took %.0f s, load %s", round+1, len(cases), time.Since(start).Seconds(), load())
	}
	return nil
}

// measureRound measures one workload on all sides, in the order given.
func (b *bench) measureRound(ctx context.Context, w workload, order []int) error {
	if b.samples[w.Name] == nil {
		b.samples[w.Name] = make(map[string][]sample)
	}
	for _, i := range order {
		s := b.sides[i]
		unix.Sync() // nothing is left to write back
		if err := pause(ctx, settleTime); err != nil {
			return fmt.Errorf("interrupted: %w", err)
		}
		got, err := measure(ctx, w, s.path, b.opt)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("%s on %s: %w", w.Name, sideTitles[s.name], err)
		}
		b.samples[w.Name][s.name] = append(b.samples[w.Name][s.name], got)
	}
	return nil
}

// settled says whether every ratio of a workload can be told.
func (b *bench) settled(w workload) bool {
	return !slices.ContainsFunc(b.results([]workload{w}), func(r result) bool { return !r.told() })
}

// balanced is orders of n things in which each comes equally often at each place,
// and equally often right after each other one (a balanced Latin square, after
// E. J. Williams, 1949): n of them if n is even, else twice as many.
func balanced(n int) [][]int {
	var orders [][]int
	for shift := range n {
		order := make([]int, n)
		for i := range order {
			at := (i + 1) / 2 // 0, 1, n-1, 2, n-2, ...
			if i%2 == 0 {
				at = (n - i/2) % n
			}
			order[i] = (at + shift) % n
		}
		orders = append(orders, order)
	}
	if n%2 == 1 {
		for _, order := range slices.Clone(orders) {
			order = slices.Clone(order)
			slices.Reverse(order)
			orders = append(orders, order)
		}
	}
	return orders
}
