package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/standalone"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	startTimeout = 90 * time.Second
	stopTimeout  = 90 * time.Second
	drainTimeout = 20 * time.Second
)

// Options for Start.
type Options struct {
	Bin      string // directory of the built commands
	Dir      string // absolute; made if missing
	Nodes    int    // default 3
	PoolSize string // "" is the standalone's default
	Zones    int
	// Lease and LegTimeout are handed to the nodes; "" is their default.
	Lease, LegTimeout string
	// Flags are further ones of `holdfast-standalone up`.
	Flags []string
	// Outlives: the standalone goes on when this process ends without Stop.
	// Otherwise it then stops in order, whatever ended this process.
	Outlives bool
}

// Standalone is a running `holdfast-standalone up`.
type Standalone struct {
	opt    Options
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended and was waited for
	err    error         // of waiting; valid once exited is closed
	ctl    *standalone.Client
	layout standalone.Layout
	nodes  []*Node

	crashed atomic.Bool // by Crash
}

// Start starts a standalone and waits until it says that it is ready. On error
// nothing of it is left but files in Dir.
func Start(ctx context.Context, o Options) (*Standalone, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	s := &Standalone{opt: o, exited: make(chan struct{}), ctl: standalone.NewClient(o.Dir)}
	if err := s.spawn(); err != nil {
		return nil, fmt.Errorf("start a standalone: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.awaitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standalone: %w", err), s.Stop(context.WithoutCancel(ctx)))
	}
	for _, n := range s.layout.Nodes {
		s.nodes = append(s.nodes, &Node{
			Name: n.Name, Socket: standalone.Socket(o.Dir, n.Name), Root: filepath.Join(o.Dir, "kubelet", n.Name),
		})
	}
	return s, nil
}

// Log is the standalone's own output.
func (s *Standalone) Log() string { return filepath.Join(s.opt.Dir, "up.log") }

// spawn starts the child. Its output goes to a file, not to a pipe: it may
// outlive this process.
func (s *Standalone) spawn() error {
	log, err := os.Create(s.Log())
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"up", "--dir", s.opt.Dir, "--nodes", strconv.Itoa(s.opt.Nodes), "--kubelet-dir", filepath.Join(s.opt.Dir, "kubelet")}
	for flag, value := range map[string]string{"--pool-size": s.opt.PoolSize, "--lease": s.opt.Lease, "--leg-timeout": s.opt.LegTimeout} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	args = append(args, s.opt.Flags...)
	if s.opt.Zones > 0 {
		args = append(args, "--zones", strconv.Itoa(s.opt.Zones))
	}
	s.cmd = exec.CommandContext(context.Background(), s.Command(), args...) // Stop ends it, in order
	s.cmd.Stdout, s.cmd.Stderr = log, log
	// A session of its own: a Ctrl-C is for this process, which stops it in order.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !s.opt.Outlives {
		s.cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the child.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.err = s.cmd.Wait()
		}
		close(s.exited)
	}()
	return <-started
}

// awaitReady waits for the line that says so.
func (s *Standalone) awaitReady(ctx context.Context) error {
	err := Await(ctx, "the standalone's ready line", func(context.Context) error {
		if s.ended() {
			return nil
		}
		b, err := os.ReadFile(s.Log())
		if err != nil {
			return err
		}
		if !strings.Contains(string(b), " processes ready in ") {
			return errors.New("not ready")
		}
		return nil
	})
	if s.ended() {
		return fmt.Errorf("it ended: %v\n%s", s.err, Tail(s.Log(), 20))
	}
	if err == nil {
		s.layout, err = standalone.ReadLayout(s.opt.Dir)
	}
	return err
}

func (s *Standalone) ended() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// Options are those that it was started with.
func (s *Standalone) Options() Options { return s.opt }

// Dir is the directory that holds everything of it.
func (s *Standalone) Dir() string { return s.opt.Dir }

// PID is the process that runs the others.
func (s *Standalone) PID() int { return s.cmd.Process.Pid }

// Command is the path of holdfast-standalone.
func (s *Standalone) Command() string { return filepath.Join(s.opt.Bin, "holdfast-standalone") }

// Nodes are the kubelets.
func (s *Standalone) Nodes() []*Node { return s.nodes }

// Node is one kubelet, by name; it panics on a name that is not there, which is
// a fault of the test.
func (s *Standalone) Node(name string) *Node {
	for _, n := range s.nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node " + name)
}

// Controller is the provisioner.
func (s *Standalone) Controller() *Provisioner {
	return &Provisioner{Socket: standalone.Socket(s.opt.Dir, standalone.ControllerName)}
}

// Do asks the control socket for "kill" (SIGKILL), "stop" (in order) or "start"
// of a process, and waits until that is done.
func (s *Standalone) Do(ctx context.Context, verb, process string) error {
	if err := s.ctl.Do(ctx, verb, process); err != nil {
		return fmt.Errorf("%s %s: %w", verb, process, err)
	}
	return nil
}

// Processes tells of all processes.
func (s *Standalone) Processes(ctx context.Context) ([]standalone.ProcessStatus, error) {
	return s.ctl.Status(ctx)
}

// Heal starts every process that has ended.
func (s *Standalone) Heal(ctx context.Context) error {
	procs, err := s.Processes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range procs {
		if !p.Running {
			errs = append(errs, s.Do(ctx, "start", p.Name))
		}
	}
	return errors.Join(errs...)
}

// Status is what the command `holdfast-standalone status` prints.
func (s *Standalone) Status(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, s.Command(), "status", "--dir", s.opt.Dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("holdfast-standalone status: %w: %s", err, out)
	}
	return string(out), nil
}

// Volumes are the store's objects, tombstones too.
func (s *Standalone) Volumes(ctx context.Context) (list []volume.Volume, err error) {
	st, err := etcd.Connect(ctx, etcd.Options{Endpoints: []string{s.layout.Store}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	return st.Volumes().List(ctx)
}

// Volume is the store's object of one volume, or ErrNotFound.
func (s *Standalone) Volume(ctx context.Context, v Volume) (volume.Volume, error) {
	list, err := s.Volumes(ctx)
	if err != nil {
		return volume.Volume{}, err
	}
	for _, o := range list {
		if string(o.ID) == v.ID {
			return o, nil
		}
	}
	return volume.Volume{}, fmt.Errorf("volume %s: %w", v.ID, volume.ErrNotFound)
}

// Image is the file of a volume's replica on a node.
func (s *Standalone) Image(o volume.Volume, node volume.NodeID) string {
	return filepath.Join(s.opt.Dir, string(node), "pool", "replicas", string(o.UID), "data.img")
}

// PoolPath is the directory of a node's pool.
func (s *Standalone) PoolPath(node string) string { return filepath.Join(s.opt.Dir, node, "pool") }

// Stop detaches what is still staged, as far as that goes, stops the standalone
// in order, and clears away what it left if it had to be killed. Dir stays.
// The error tells what did not end in order.
func (s *Standalone) Stop(ctx context.Context) error {
	if s.crashed.Load() {
		return nil
	}
	if !s.ended() {
		s.drain(ctx)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the standalone: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	select {
	case <-s.exited:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("the standalone did not end: %w", ctx.Err()), s.crash())
	}
	if s.err != nil {
		return errors.Join(fmt.Errorf("the standalone ended with %w\n%s", s.err, Tail(s.Log(), 20)), s.down())
	}
	return nil
}

// drain detaches, so that nodes which are well end in order. Nodes that are not
// can't; their mounts go with the standalone.
func (s *Standalone) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	procs, err := s.Processes(ctx)
	if err != nil {
		return
	}
	for _, p := range procs {
		for _, n := range s.nodes {
			if n.Name == p.Name && p.Running {
				_ = n.Drain(ctx)
			}
		}
	}
}

// Crash kills the process that runs the others with SIGKILL, and clears away
// with `holdfast-standalone down`. Stop then has nothing left to do.
func (s *Standalone) Crash() error {
	s.crashed.Store(true)
	return s.crash()
}

func (s *Standalone) crash() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	return s.down()
}

func (s *Standalone) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, s.Command(), "down", "--dir", s.opt.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("holdfast-standalone down: %w: %s", err, out)
	}
	return nil
}

// Tail is the last lines of a file.
func Tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Tails are the last lines of every process's log.
func (s *Standalone) Tails(lines int) string {
	var b strings.Builder
	for _, name := range s.layout.Processes {
		fmt.Fprintf(&b, "--- %s\n%s\n", standalone.Log(s.opt.Dir, name), Tail(standalone.Log(s.opt.Dir, name), lines))
	}
	return b.String()
}
