// Command bench is `make bench`: it starts a three-node Holdfast on this
// machine and measures it with fio against what it stands on: the raw file, and
// a loop device on such a file. All sides are measured in the same run, in
// interleaved rounds, so that a change of the machine's mood reaches all of
// them; results are medians, and ratios are taken round by round.
//
// A side leaves something behind for the next one: pages to write back, a disk
// that has to recover. So everything is written back before each measurement,
// each begins with a warm-up that does not count, and over the rounds each side
// comes equally often after each other one (rounds.go). The warm-up also makes
// the regions of a mirrored volume's write-intent bitmap warm: what is measured is
// the steady state, not the first write after a pause.
//
// It fails if a floor is missed, and also if the rounds of a side spread too
// wide to tell. It leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// Options are the command line.
type Options struct {
	Bin       string        // directory of the built commands
	Dir       string        // where everything lies; "" makes a temporary one
	JSON      string        // file for the results; "" writes none
	Readme    string        // file with the place for the table; "" writes none
	Rounds    int           // at least so many; more of what spreads too wide to tell
	MaxRounds int           // at most; 0: three times Rounds
	Limit     time.Duration // after which no further round begins that is one of those more
	Runtime   time.Duration // of one measurement
	Warmup    time.Duration // before it
	SizeBytes int64         // of each side's file or volume
	Only      string        // comma-separated workloads; "" means all
	Sides     string        // comma-separated sides; "" means all
	Idle      int           // staged idle volumes for the resource measurement; 0 skips it
	Repair    RepairOptions
}

// AddFlags binds the options to the command line.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Bin, "bin", "bin", "directory with the built commands")
	fs.StringVar(&o.Dir, "dir", "", "directory for everything; must not exist; default: a new one in /var/tmp")
	fs.StringVar(&o.JSON, "json", "", "file for the results as JSON")
	fs.StringVar(&o.Readme, "readme", "", "file in which the table replaces what stands between "+tableBegin+" and "+tableEnd)
	fs.IntVar(&o.Rounds, "rounds", 6, "rounds at least; more of the workloads that spread too wide to tell")
	fs.IntVar(&o.MaxRounds, "max-rounds", 0, "rounds at most; 0: three times --rounds")
	fs.DurationVar(&o.Limit, "limit", 12*time.Minute, "time after which no additional round begins")
	fs.DurationVar(&o.Runtime, "runtime", time.Second, "time of one measurement")
	fs.DurationVar(&o.Warmup, "warmup", 500*time.Millisecond, "time for which each measurement runs before it counts")
	fs.Int64Var(&o.SizeBytes, "size", 512<<20, "bytes of each file and volume")
	fs.StringVar(&o.Only, "only", "", "comma-separated workloads; default: all")
	fs.StringVar(&o.Sides, "sides", "", "comma-separated sides, to which loop is added; default: all")
	fs.IntVar(&o.Idle, "idle", 10, "staged idle volumes for the measurement of memory and CPU; 0 skips it")
	o.Repair.AddFlags(fs)
}

// Validate reports all faults, and makes paths absolute.
func (o *Options) Validate() error {
	var errs []error
	if missing := kubelet.Missing(); missing != "" {
		errs = append(errs, errors.New(missing))
	}
	for _, tool := range []string{"fio", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			errs = append(errs, err)
		}
	}
	if o.Rounds < 3 || o.Runtime < time.Second || o.Warmup < 0 || o.SizeBytes < 64<<20 || o.SizeBytes%(1<<20) != 0 {
		errs = append(errs, errors.New("at least 3 rounds of a second each, on a multiple of 1 MiB from 64 MiB on"))
	}
	if o.MaxRounds == 0 {
		o.MaxRounds = 3 * o.Rounds
	}
	_, err := selectWorkloads(o.Only)
	_, err2 := selectSides(o.Sides)
	errs = append(errs, err, err2, o.Repair.Validate())
	if o.Bin, err = filepath.Abs(o.Bin); err == nil {
		_, err = os.Stat(filepath.Join(o.Bin, "holdfast-standalone"))
	}
	errs = append(errs, err)
	if o.Readme != "" {
		errs = append(errs, checkReadme(o.Readme))
	}
	if o.Dir != "" {
		if o.Dir, err = filepath.Abs(o.Dir); err == nil {
			if _, err := os.Lstat(o.Dir); !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("--dir %s: it is removed at the end, so it must not exist now", o.Dir))
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func main() {
	var o Options
	o.AddFlags(flag.CommandLine)
	flag.Parse()
	if err := o.Validate(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	measureAll := run
	if o.Repair.On {
		measureAll = runRepair
	}
	if err := measureAll(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", strings.TrimSpace(err.Error()))
		stop()
		os.Exit(1)
	}
}
