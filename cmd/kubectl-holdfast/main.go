// Command kubectl-holdfast is the administrator's view of a Holdfast and the few
// things that only an administrator may decide. As a kubectl plugin it is called
// "kubectl holdfast"; on a standalone it is used as it is.
//
// Its command line is the standard library's: seven verbs with a handful of flags
// need no framework.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/admin"
	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/standalone"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "kubectl-holdfast:", err)
		}
		os.Exit(1)
	}
}

// Options are the command line.
type Options struct {
	Store   string
	Dir     string
	Output  string
	Timeout time.Duration

	Watch          bool // resync
	Interval       time.Duration
	AcceptDataLoss bool // promote
	Cancel         bool // evict
	Force, DryRun  bool // rebuild-store

	args []string // what is no flag
}

// AddFlags binds the options of all verbs to the command line.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Store, "store", os.Getenv("HOLDFAST_STORE"), "etcd endpoints of the store, separated by commas (HOLDFAST_STORE)")
	fs.StringVar(&o.Dir, "dir", os.Getenv("HOLDFAST_DIR"), "directory of a standalone, instead of --store (HOLDFAST_DIR)")
	fs.StringVar(&o.Output, "o", "text", "text or json")
	fs.DurationVar(&o.Timeout, "timeout", 30*time.Second, "for everything but --watch")
}

// parse takes flags before, between and after the other arguments.
func (o *Options) parse(fs *flag.FlagSet, args []string) error {
	for {
		if err := fs.Parse(args); err != nil {
			return err
		}
		if fs.NArg() == 0 {
			return nil
		}
		o.args, args = append(o.args, fs.Arg(0)), fs.Args()[1:]
	}
}

// Validate reports all faults.
func (o *Options) Validate() error {
	var errs []error
	if (o.Store == "") == (o.Dir == "") {
		errs = append(errs, volume.Invalid("--store, --dir", o.Store+o.Dir, "one of the two"))
	}
	if o.Output != "text" && o.Output != "json" {
		errs = append(errs, volume.Invalid("-o", o.Output, "text or json"))
	}
	if o.Watch && o.Interval < 10*time.Millisecond {
		errs = append(errs, volume.Invalid("--interval", o.Interval.String(), "at least 10ms"))
	}
	if o.Timeout <= 0 {
		errs = append(errs, volume.Invalid("--timeout", o.Timeout.String(), "more than 0"))
	}
	return errors.Join(errs...)
}

// endpoints are the store's.
func (o *Options) endpoints() ([]string, error) {
	if o.Dir == "" {
		return strings.Split(o.Store, ","), nil
	}
	l, err := standalone.ReadLayout(o.Dir)
	return []string{l.Store}, err
}

// verb is one thing that the command does.
type verb struct {
	name  string
	args  []string // names of its arguments
	help  string
	flags func(*Options, *flag.FlagSet)
	run   func(context.Context, *call) error
}

// call is one use of a verb.
type call struct {
	*Options
	admin *admin.Admin
	out   io.Writer
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]) {
		usage(out)
		return nil
	}
	i := slices.IndexFunc(verbs(), func(v verb) bool { return v.name == args[0] })
	if i < 0 {
		return fmt.Errorf("there is no command %q: see kubectl-holdfast help", args[0])
	}
	v := verbs()[i]
	o := &Options{}
	fs := flag.NewFlagSet("kubectl-holdfast "+strings.Join(append([]string{v.name}, v.args...), " "), flag.ContinueOnError)
	o.AddFlags(fs)
	if v.flags != nil {
		v.flags(o, fs)
	}
	if err := o.parse(fs, args[1:]); err != nil {
		return err
	}
	if required := slices.DeleteFunc(slices.Clone(v.args), optional); len(o.args) < len(required) || len(o.args) > len(v.args) {
		return fmt.Errorf("usage: %s", fs.Name())
	}
	if err := o.Validate(); err != nil {
		return err
	}
	return o.connected(ctx, func(ctx context.Context, a *admin.Admin) error {
		return v.run(ctx, &call{Options: o, admin: a, out: out})
	})
}

func optional(arg string) bool { return strings.HasPrefix(arg, "[") }

// connected runs f with a connection to the store and the agents.
func (o *Options) connected(ctx context.Context, f func(context.Context, *admin.Admin) error) (err error) {
	if !o.Watch {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Timeout)
		defer cancel()
	}
	endpoints, err := o.endpoints()
	if err != nil {
		return err
	}
	s, err := etcd.Connect(ctx, etcd.Options{Endpoints: endpoints, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	clients := agent.NewClients()
	defer func() { err = errors.Join(err, clients.Close(), s.Close()) }()
	return f(ctx, &admin.Admin{Store: s, Agents: clients})
}

func usage(out io.Writer) {
	fmt.Fprint(out, "kubectl-holdfast shows and repairs a Holdfast.\n\n")
	for _, v := range verbs() {
		fmt.Fprintf(out, "  %-34s %s\n", strings.Join(append([]string{v.name}, v.args...), " "), v.help)
	}
	fmt.Fprint(out, "\nVOLUME is an ID, a name, or the beginning of an ID. Every command takes --store ENDPOINTS or --dir DIR\n"+
		"(a standalone's), or HOLDFAST_STORE or HOLDFAST_DIR, and -o json. \"COMMAND --help\" lists its flags.\n")
}
