// Command demo is `make demo`: it starts a three-node Holdfast on this machine
// and does its main job through the real CSI sockets, saying what it does and
// how long each step took. Whatever happens, it leaves nothing behind, and looks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// Options are the command line.
type Options struct {
	Bin  string // directory of the built commands
	Dir  string // where everything lies; "" makes a temporary one
	Keep bool   // leave it running
}

// AddFlags binds the options to the command line.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Bin, "bin", "bin", "directory with the built commands")
	fs.StringVar(&o.Dir, "dir", "", "directory for everything; must not exist; default: a new one in /var/tmp")
	fs.BoolVar(&o.Keep, "keep", false, "leave it running with its volumes, and say how to talk to it")
}

// Validate reports all faults, and makes paths absolute.
func (o *Options) Validate() error {
	var errs []error
	if missing := kubelet.Missing(); missing != "" {
		errs = append(errs, errors.New(missing))
	}
	bin, err := filepath.Abs(o.Bin)
	if err == nil {
		_, err = os.Stat(filepath.Join(bin, "holdfast-standalone"))
	}
	o.Bin = bin
	errs = append(errs, err)
	if o.Dir == "" {
		return errors.Join(errs...)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err == nil {
		_, err = os.Lstat(o.Dir)
	}
	if !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("--dir %s: it is removed at the end, so it must not exist now", o.Dir))
	}
	return errors.Join(errs...)
}

func main() {
	var o Options
	o.AddFlags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := o.Validate()
	if err == nil {
		err = run(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
