// Command holdfast-controller is the controller plugin: CSI Controller service,
// placement and reconcilers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/controller"
	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "holdfast-controller:", err)
		os.Exit(1)
	}
}

// Options are the command line.
type Options struct {
	Store     string
	CSISocket string
	LogLevel  string
	// ReplaceAfter: see controller.Options.
	ReplaceAfter time.Duration

	level slog.Level
}

// AddFlags binds the options to the command line.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Store, "store", "", "etcd endpoints of the store, separated by commas")
	fs.StringVar(&o.CSISocket, "csi-socket", "", "path of the unix socket for CSI")
	fs.DurationVar(&o.ReplaceAfter, "replace-after", 10*time.Minute, "replicas on a node that stays away for so long are replaced")
	fs.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
}

// Validate reports all faults.
func (o *Options) Validate() error {
	var errs []error
	if o.Store == "" {
		errs = append(errs, volume.Invalid("--store", o.Store, "one or more etcd endpoints"))
	}
	if !filepath.IsAbs(o.CSISocket) {
		errs = append(errs, volume.Invalid("--csi-socket", o.CSISocket, "an absolute path"))
	}
	if o.ReplaceAfter <= 0 {
		errs = append(errs, volume.Invalid("--replace-after", o.ReplaceAfter.String(), "more than 0"))
	}
	if err := o.level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		errs = append(errs, volume.Invalid("--log-level", o.LogLevel, "debug, info, warn or error"))
	}
	return errors.Join(errs...)
}

func run(args []string) error {
	var o Options
	fs := flag.NewFlagSet("holdfast-controller", flag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if err := o.Validate(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.level}))
	slog.SetDefault(log)
	return serve(ctx, &o, log)
}

func serve(ctx context.Context, o *Options, log *slog.Logger) (err error) {
	s, err := etcd.Connect(ctx, etcd.Options{Endpoints: strings.Split(o.Store, ","), Logger: log})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	clients := agent.NewClients()
	defer func() { err = errors.Join(err, clients.Close(), s.Close()) }()
	live := store.NewLiveness(s.Nodes(), log)
	c := controller.New(controller.Options{Store: s, Agents: agents{clients}, Liveness: live, Logger: log, ReplaceAfter: o.ReplaceAfter})
	if err := os.MkdirAll(filepath.Dir(o.CSISocket), 0o750); err != nil {
		return fmt.Errorf("csi socket: %w", err)
	}
	server, err := csi.NewServer(csi.ServerOptions{
		Socket: o.CSISocket, Identity: csi.NewIdentity(c.Ready), Controller: csi.NewController(c), Logger: log,
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return live.Run(gctx) })
	g.Go(func() error { return c.Run(gctx) })
	g.Go(func() error { return server.Serve(gctx) })
	log.Info("controller plugin is up", "socket", o.CSISocket)
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
