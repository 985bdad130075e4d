package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	readyTimeout = 60 * time.Second
	stopPatience = 40 * time.Second
)

// Supervisor runs the processes of one directory.
type Supervisor struct {
	opt     Options
	layout  Layout
	pools   map[string]string // --pool of each node
	out     io.Writer
	log     *slog.Logger
	spawner *spawner
	lock    *os.File // on DIR: one supervisor at a time

	mu    sync.Mutex
	procs map[string]*process // Guarded by mu.
}

// New prepares the directory; nothing runs yet. What a killed supervisor left
// there is removed first.
func New(ctx context.Context, opt Options, out io.Writer, log *slog.Logger) (*Supervisor, error) {
	if opt.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		opt.BinDir = filepath.Dir(self)
	}
	if opt.LogLevel == "" {
		opt.LogLevel = "info"
	}
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := lockDir(opt.Dir)
	if err != nil {
		return nil, err
	}
	s := &Supervisor{opt: opt, out: out, log: log, lock: lock, spawner: newSpawner(), procs: map[string]*process{}}
	if s.layout, err = layout(opt); err == nil {
		err = sweep(ctx, opt.Dir, s.layout)
	}
	if err == nil {
		s.pools, err = pools(opt, s.layout)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// lockDir makes sure that one supervisor has the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by a running standalone: %w", dir, volume.ErrPrecondition), f.Close())
	}
	return f, nil
}

// Run starts everything, serves the control socket until ctx ends, and stops
// everything in order. It returns once nothing of it is left running.
func (s *Supervisor) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.shutdown()) }()
	started := time.Now()
	for _, name := range s.layout.Processes {
		if err := s.Start(name); err != nil {
			return err
		}
		if name == StoreName {
			if err := s.awaitReady(ctx, name); err != nil {
				return err
			}
		}
	}
	for _, name := range s.layout.Processes {
		if err := s.awaitReady(ctx, name); err != nil {
			return err
		}
	}
	control, err := s.listenControl() // before anybody is told to use it
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "standalone: %d processes ready in %.1f s in %s\n", len(s.layout.Processes), time.Since(started).Seconds(), s.opt.Dir)
	return s.serveControl(ctx, control)
}

// Start starts a process that is not running.
func (s *Supervisor) Start(name string) error {
	argv, death, err := s.command(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[name]; p != nil && p.running() {
		return fmt.Errorf("%s is running already: %w", name, volume.ErrPrecondition)
	}
	var p *process
	s.spawner.do(func() { p, err = startProcess(s.opt.Dir, name, argv, death) })
	if err != nil {
		return err
	}
	s.procs[name] = p
	return nil
}

// command is how a process is started, and the signal that it gets if the
// supervisor is killed: nodes get one that lets them clean up.
func (s *Supervisor) command(name string) ([]string, syscall.Signal, error) {
	bin := func(cmd string) string { return filepath.Join(s.opt.BinDir, cmd) }
	dir := filepath.Join(s.opt.Dir, name)
	endpoint := s.layout.Store
	switch name {
	case StoreName:
		return []string{bin("holdfast-standalone"), "store", "--dir", filepath.Join(dir, "data"),
			"--listen", endpoint}, syscall.SIGKILL, nil
	case ControllerName:
		argv := []string{bin("holdfast-controller"), "--store", endpoint, "--csi-socket", Socket(s.opt.Dir, name), "--log-level", s.opt.LogLevel}
		return append(argv, given("--replace-after", s.opt.ReplaceAfter)...), syscall.SIGKILL, nil
	}
	for i, n := range s.layout.Nodes {
		if n.Name != name {
			continue
		}
		argv := []string{bin("holdfast-node"), "--node-id", name, "--store", endpoint, "--csi-socket", Socket(s.opt.Dir, name),
			"--agent-listen", n.Agent, "--replica-listen", n.Replica, "--state-dir", filepath.Join(dir, "state"),
			"--pool", s.pools[name], "--log-level", s.opt.LogLevel}
		argv = append(argv, given("--lease", s.opt.Lease, "--kubelet-dir", s.opt.KubeletDir, "--leg-timeout", s.opt.LegTimeout, "--rejoin-timeout", s.opt.RejoinTimeout,
			"--repair-delay", s.opt.RepairDelay, "--holder-grace", s.opt.HolderGrace, "--resync-limit", s.opt.ResyncLimit)...)
		if s.opt.Zones > 0 {
			argv = append(argv, "--topology", fmt.Sprintf("topology.kubernetes.io/zone=z%d", i%s.opt.Zones+1))
		}
		return argv, syscall.SIGTERM, nil
	}
	return nil, 0, fmt.Errorf("there is no process %q; there are %v: %w", name, s.layout.Processes, volume.ErrNotFound)
}

// given are those of the flags that have a value.
func given(flags ...string) []string {
	var out []string
	for i := 0; i+1 < len(flags); i += 2 {
		if flags[i+1] != "" {
			out = append(out, flags[i], flags[i+1])
		}
	}
	return out
}

// awaitReady waits until the process serves; an early end names its log.
func (s *Supervisor) awaitReady(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var last error
	for {
		if p := s.find(name); p == nil || !p.running() {
			return fmt.Errorf("%s ended while starting; its log (%s) ends with:\n%s", name, Log(s.opt.Dir, name), tail(Log(s.opt.Dir, name)))
		}
		if last = s.ready(ctx, name); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %w", name, last, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Supervisor) ready(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if name != StoreName {
		return csi.ProbeSocket(ctx, Socket(s.opt.Dir, name))
	}
	st, err := etcd.Connect(ctx, etcd.Options{Endpoints: []string{s.layout.Store}, Logger: s.log})
	if err != nil {
		return err
	}
	_, err = st.Nodes().List(ctx)
	return errors.Join(err, st.Close())
}

func (s *Supervisor) find(name string) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[name]
}

// Kill kills a process with SIGKILL, for real, and waits for its end.
func (s *Supervisor) Kill(name string) error {
	p := s.find(name)
	if p == nil {
		return fmt.Errorf("there is no process %q: %w", name, volume.ErrNotFound)
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// Stop ends a process in order.
func (s *Supervisor) Stop(name string) error {
	p := s.find(name)
	if p == nil {
		return fmt.Errorf("there is no process %q: %w", name, volume.ErrNotFound)
	}
	return p.stop(stopPatience)
}

// shutdown ends everything: first all nodes at once, which need the store to
// release what they hold, then controller and store.
func (s *Supervisor) shutdown() error {
	errs := make(chan error, len(s.layout.Nodes)+2)
	var wg sync.WaitGroup
	for _, n := range s.layout.Nodes {
		if p := s.find(n.Name); p != nil {
			wg.Go(func() { errs <- p.stop(stopPatience) })
		}
	}
	wg.Wait()
	for _, name := range []string{ControllerName, StoreName} {
		if p := s.find(name); p != nil {
			errs <- p.stop(stopPatience)
		}
	}
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	all = append(all, sweep(ctx, s.opt.Dir, s.layout), s.lock.Close())
	close(s.spawner.work)
	return errors.Join(all...)
}

// tail is the last lines of a log.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}
