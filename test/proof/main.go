// Command proof runs the proofs of the replication: the explorer, the simulator,
// and the mutants that show that both notice a broken rule. Each run is appended
// to docs/evidence.jsonl; `proof sum` adds that file up, and a total claimed
// anywhere is what it prints.
//
//	proof explore            every state of the small worlds
//	proof sim -seeds N       N histories of big ones
//	proof mutants            every breakage must be caught
//	proof sum                what docs/evidence.jsonl adds up to
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "proof:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("say what: explore, sim, mutants or sum")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	seeds := flags.Uint64("seeds", 1000, "sim: how many histories")
	first := flags.Uint64("first", 0, "sim: the first seed; 0 goes on after the last one in the evidence")
	evidence := flags.String("evidence", "docs/evidence.jsonl", "where the run is noted; empty: nowhere")
	only := flags.String("only", "", "mutants: this one alone")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "explore":
		return explore(ctx, *evidence)
	case "sim":
		return simulate(ctx, *evidence, *first, *seeds)
	case "mutants":
		return mutants(ctx, *evidence, *only)
	case "sum":
		return sum(os.Stdout, *evidence)
	}
	return fmt.Errorf("%q is not one of explore, sim, mutants and sum", args[0])
}
