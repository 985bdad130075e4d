// Command holdfast-node is the node plugin: CSI Node service, agent, replica
// server, mirrors and exports of one node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-csi/holdfast/pkg/export"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-node:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var o Options
	fs := flag.NewFlagSet("holdfast-node", flag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if o.Probe {
		fmt.Print(export.Probe(ctx))
		return nil
	}
	if err := o.Validate(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.level})).With("node", o.NodeID)
	slog.SetDefault(log)
	if err := export.TuneRuntime(); err != nil {
		log.Info("runtime not fully tuned", "error", err)
	}
	return serve(ctx, &o, log)
}
