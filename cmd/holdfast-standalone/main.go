// Command holdfast-standalone runs a whole Holdfast on one machine, without
// Kubernetes: store, controller and nodes, each a process of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/standalone"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const usage = `holdfast-standalone runs a whole Holdfast on one machine.

  holdfast-standalone up --dir DIR [--nodes 3] [--pool-size 8Gi]   start it, in the foreground
  holdfast-standalone status --dir DIR                             processes, nodes and volumes
  holdfast-standalone start|stop|kill NAME --dir DIR               one process; kill is SIGKILL
  holdfast-standalone down --dir DIR                               remove what a killed one left
  holdfast-standalone store --dir DIR --listen HOST:PORT           the embedded store alone
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-standalone:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(out, usage)
		return errors.New("say what to do")
	}
	verb, rest := args[0], args[1:]
	name := ""
	if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		name, rest = rest[0], rest[1:]
	}
	switch verb {
	case "up":
		return up(ctx, rest, out)
	case "store":
		return runStore(ctx, rest)
	case "status":
		return status(ctx, rest, out)
	case "start", "stop", "kill":
		dir, err := dirFlag(verb, rest)
		if err != nil {
			return err
		}
		if name == "" {
			return fmt.Errorf("%s which process?", verb)
		}
		return standalone.NewClient(dir).Do(ctx, verb, name)
	case "down":
		dir, err := dirFlag(verb, rest)
		if err != nil {
			return err
		}
		return standalone.Down(ctx, dir)
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return nil
	}
	return fmt.Errorf("unknown command %q\n%s", verb, usage)
}

func dirFlag(verb string, args []string) (string, error) {
	fs := flag.NewFlagSet(verb, flag.ContinueOnError)
	dir := fs.String("dir", "", "the standalone's directory")
	if err := fs.Parse(args); err != nil {
		return "", err
	}
	if *dir == "" {
		return "", volume.Invalid("--dir", "", "the standalone's directory")
	}
	return *dir, nil
}

func up(ctx context.Context, args []string, out io.Writer) error {
	var o standalone.Options
	fs := flag.NewFlagSet("up", flag.ContinueOnError)
	fs.StringVar(&o.Dir, "dir", "", "directory for everything; made if missing")
	fs.IntVar(&o.Nodes, "nodes", 3, "how many nodes")
	size := fs.String("pool-size", "8Gi", "size of each node's pool, where the directory's filesystem has no reflink")
	fs.StringVar(&o.LogLevel, "log-level", "info", "of the processes")
	fs.StringVar(&o.Lease, "lease", "", "handed to the nodes")
	fs.StringVar(&o.LegTimeout, "leg-timeout", "", "handed to the nodes")
	fs.StringVar(&o.RejoinTimeout, "rejoin-timeout", "", "handed to the nodes")
	fs.StringVar(&o.ResyncLimit, "resync-limit", "", "handed to the nodes")
	fs.StringVar(&o.RepairDelay, "repair-delay", "", "handed to the nodes")
	fs.StringVar(&o.HolderGrace, "holder-grace", "", "handed to the nodes")
	fs.StringVar(&o.ReplaceAfter, "replace-after", "", "handed to the controller")
	fs.StringVar(&o.KubeletDir, "kubelet-dir", "", "staging and target paths must lie in it; default: anywhere")
	fs.IntVar(&o.Zones, "zones", 0, "spread the nodes over so many zones")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	if o.PoolSize, err = volume.ParseBytes(*size); err != nil {
		return fmt.Errorf("--pool-size: %w", err)
	}
	s, err := standalone.New(ctx, o, out, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func runStore(ctx context.Context, args []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	o := etcd.EmbeddedOptions{Logger: log}
	fs := flag.NewFlagSet("store", flag.ContinueOnError)
	fs.StringVar(&o.Dir, "dir", "", "data directory")
	fs.StringVar(&o.ListenClient, "listen", "", "host:port for clients; loopback only")
	if err := fs.Parse(args); err != nil {
		return err
	}
	e, err := etcd.StartEmbedded(ctx, o)
	if err != nil {
		return err
	}
	log.Info("store is up", "listen", o.ListenClient)
	select {
	case <-ctx.Done():
	case <-e.Done():
	}
	return e.Close()
}

func status(ctx context.Context, args []string, out io.Writer) error {
	dir, err := dirFlag("status", args)
	if err != nil {
		return err
	}
	procs, err := standalone.NewClient(dir).Status(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PROCESS\tPID\tSTATE\tCSI SOCKET\tLOG")
	for _, p := range procs {
		state := "running"
		if !p.Running {
			state = "ended: " + p.Exit
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", p.Name, p.PID, state, p.Socket, p.Log)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return volumes(ctx, dir, out)
}

// volumes prints what the store says.
func volumes(ctx context.Context, dir string, out io.Writer) (err error) {
	layout, err := standalone.ReadLayout(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := etcd.Connect(ctx, etcd.Options{Endpoints: []string{layout.Store}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	vs, err := s.Volumes().List(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nVOLUME\tNAME\tSIZE\tPHASE\tHOLDER\tEPOCH\tREPLICAS")
	for _, v := range vs {
		holder := "-"
		if v.Status.Holder != nil {
			holder = string(v.Status.Holder.Node)
		}
		var reps []string
		for _, r := range v.Status.Replicas {
			reps = append(reps, fmt.Sprintf("%s=%s", r.Node, r.State))
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%s\n", v.ID, v.Spec.Name, v.Status.SizeBytes, v.Status.Phase, holder, v.Status.Epoch, strings.Join(reps, " "))
	}
	return w.Flush()
}
