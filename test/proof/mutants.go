package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// mutant is one breakage: what is broken, in words.
type mutant struct{ name, rule string }

// all the breakages. A test compares this table with the names in the code.
var all = []mutant{
	{"ack-before-store", "a write is acknowledged without a failed leg before the store knows"},
	{"read-without-lease", "reads are served although the other replicas have not answered lately"},
	{"prove-late", "an answer is taken for proof of the time when it came"},
	{"serve-within-lease", "a takeover serves while the holder before may still read"},
	{"copy-without-lock", "a rebuild's copy holds no range"},
	{"changes-overtake", "overlapping changes don't wait for each other"},
	{"read-unacknowledged", "a read does not wait for the change that it overlaps"},
	{"rebuild-misses-writes", "a rebuilding leg gets no new writes"},
	{"trust-unclean", "after an unclean close all replicas are taken to be equal"},
	{"serve-before-recording", "I/O is served before unreached replicas are recorded"},
	{"bump-past-newer", "an opening goes on although a replica has seen a newer epoch"},
	{"promote-undrained", "a leg is promoted before it has answered what it was sent"},
	{"promote-unflushed", "a leg is promoted without a flush of its own"},
	{"believe-lost-swap", "a swap without an answer is believed to have happened"},
	{"forget-lost-swap", "a swap without an answer is believed not to have happened"},
	{"close-unflushed", "a clean close does not flush"},
	{"grow-early", "a new size is served when the first replica has it"},
	{"drop-last-leg", "the last InSync replica may be recorded Outdated"},
	{"accept-lower-epoch", "a replica lets any opening in"},
	{"made-without-epoch", "a replica that is made anew lets in whoever the one before had fenced"},
	{"promote-uncounted", "a leg is promoted before acknowledgements need it"},
	{"copy-misses-the-end", "a rebuild does not copy everything"},
	{"promise-before-taken", "a flush is answered by an opening that has no leg"},
	{"clear-undrained", "intent bits are cleared before the changes under way are answered"},
	{"clear-unflushed", "intent bits are cleared without a flush"},
	{"dirty-of-one-leg", "after an unclean close only one replica's intent bits count"},
	{"clear-unnoted", "intent bits are cleared without noting what absent replicas missed"},
	{"delta-without-inflight", "a returning replica is not compared where changes were under way when it came up"},
	{"delta-without-own", "a returning replica's own intent bits are not asked for"},
	{"read-dirty", "a region that may differ is read before it is corrected"},
	{"ignore-incarnation", "a replica that comes back is not asked whether it has forgotten"},
	{"trust-restarted", "after an unclean close a replica that has forgotten counts as one that has not"},
	{"rejoin-without-resending", "a replica that comes back is not sent what it has not answered"},
	{"no-space-is-written", "a write that a full pool refused counts as written"},
	{"believe-any-note", "what any replica noted for a returning one is believed, as if it had been there all the time"},
	{"trim-unflushed", "a resync's progress is noted before the replica has flushed what was copied"},
	{"trim-unsent", "a resync's progress is noted as it is when the flush is answered, not when it was sent"},
	{"believe-unmarked", "the store is told that a rebuild's delta is known before the replicas have noted it"},
	{"mark-nothing", "a rebuild's delta is taken to be known, and nobody notes what is missing"},
	{"forget-own", "a replica that is resynced clears all its intent bits, not only those of what was copied"},
	{"changes-overtake-rebuild", "a change does not wait for one that only a rebuilding leg has yet to answer"},
	{"copy-skips-holes", "a resync does not copy zeroes"},
	{"keep-old-session", "an opening does not end the older session"},
	{"forget-epoch", "a replica does not write down which epoch it has seen"},
	{"forget-failure", "a replica does not write down that its disk failed"},
	{"intent-unwritten", "intent bits are not written before the change"},
	{"map-unsynced", "regions.map is written and never synced"},
	{"missed-unwritten", "what absent replicas missed is not made durable before bits are cleared"},
	{"sweep-in-use", "bits that stand for changes are given up with those that don't"},
	{"flush-unsynced", "a replica answers a flush without an fsync"},
}

// catcher is a test that may notice.
type catcher struct {
	name, pkg string
	args      []string
}

var catchers = []catcher{
	{"explorer", corePackage, []string{"-test.run=^TestExplore$"}}, // its small settings
	{"simulator", simPackage, []string{"-test.run=^TestSeeds$", "-sim.seeds=6000"}},
	{"explorer", corePackage, []string{"-test.run=^TestExplore$", "-explore"}}, // all of them
}

// patience is how long one catcher may look for one mutant.
const patience = 6 * time.Minute

func mutants(ctx context.Context, evidence, only string) error {
	dir, remove, err := scratch()
	if err != nil {
		return err
	}
	defer remove()
	bins := map[string]string{}
	for _, c := range catchers {
		if bins[c.pkg] == "" {
			if bins[c.pkg], err = build(ctx, dir, c.pkg, "mutants"); err != nil {
				return err
			}
		}
	}
	began, caught, tried := time.Now(), 0, 0
	for _, m := range all {
		if only != "" && m.name != only {
			continue
		}
		tried++
		by, took, err := hunt(ctx, m, bins)
		if err != nil {
			return err
		}
		if by == "" {
			fmt.Printf("MISSED  %-24s %s (%v)\n", m.name, m.rule, took)
			continue
		}
		caught++
		fmt.Printf("caught  %-24s by the %s after %v: %s\n", m.name, by, took, m.rule)
	}
	err = note(ctx, evidence, record{Kind: "mutants", Seconds: time.Since(began).Seconds(), Counts: map[string]int64{"mutants": int64(tried), "caught": int64(caught)}})
	if err != nil {
		return err
	}
	fmt.Printf("mutants: %d of %d caught\n", caught, tried)
	if caught < tried {
		return fmt.Errorf("%d breakages were not noticed", tried-caught)
	}
	return nil
}

// hunt runs the catchers until one fails.
func hunt(ctx context.Context, m mutant, bins map[string]string) (by string, took time.Duration, err error) {
	began := time.Now()
	for _, c := range catchers {
		cctx, cancel := context.WithTimeout(ctx, patience)
		_, err := job{bin: bins[c.pkg], pkg: c.pkg, args: c.args, env: []string{"MUTANT=" + m.name}, out: io.Discard}.do(cctx)
		late := cctx.Err() != nil
		cancel()
		took = time.Since(began).Round(10 * time.Millisecond)
		var failed *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return "", took, ctx.Err()
		case late:
			fmt.Fprintf(os.Stderr, "the %s did not end within %v for %s\n", c.name, patience, m.name)
		case errors.As(err, &failed):
			return c.name, took, nil
		case err != nil:
			return "", took, err
		}
	}
	return "", took, nil
}
