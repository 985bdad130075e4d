package standalone

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options for New.
type Options struct {
	Dir      string // absolute; made if missing
	Nodes    int    // 1 to 9
	PoolSize int64  // bytes of an image-file pool, where Dir's filesystem has no reflink
	BinDir   string // where the other commands are; default: beside this one
	LogLevel string // of the children
	// LegTimeout, RejoinTimeout, Lease, RepairDelay, HolderGrace and ResyncLimit are
	// handed to the nodes, ReplaceAfter to the controller; "" means their default.
	LegTimeout, RejoinTimeout, Lease, RepairDelay, HolderGrace, ResyncLimit, ReplaceAfter string
	// KubeletDir confines staging and target paths; "" does not.
	KubeletDir string
	// Zones > 0 labels the nodes topology.kubernetes.io/zone=z1, z2, ... in turn.
	Zones int
}

// The names of the two processes that are not nodes.
const (
	StoreName      = "store"
	ControllerName = "controller"
	socketMax      = 100 // bytes; a sockaddr_un holds 107
)

// Validate reports all faults.
func (o *Options) Validate() error {
	var errs []error
	if !filepath.IsAbs(o.Dir) || filepath.Clean(o.Dir) != o.Dir || o.Dir == "/" || len(filepath.Join(o.Dir, ControllerName, "csi.sock")) > socketMax {
		errs = append(errs, volume.Invalid("--dir", o.Dir, fmt.Sprintf("a clean absolute path of at most %d bytes", socketMax-len("/controller/csi.sock"))))
	}
	if strings.ContainsAny(o.Dir, ",=\n") {
		errs = append(errs, volume.Invalid("--dir", o.Dir, "a path without comma, equals sign and line break"))
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, volume.Invalid("--nodes", fmt.Sprint(o.Nodes), "1 to 9"))
	}
	if o.PoolSize < 512<<20 {
		errs = append(errs, volume.Invalid("--pool-size", fmt.Sprint(o.PoolSize), "at least 512Mi"))
	}
	return errors.Join(errs...)
}

// Layout is what standalone.json keeps.
type Layout struct {
	Store     string   `json:"store"` // host:port
	Nodes     []Node   `json:"nodes"`
	Processes []string `json:"processes"` // in the order in which they start
}

// Node is one node's addresses.
type Node struct {
	Name    string `json:"name"`
	Agent   string `json:"agent"`
	Replica string `json:"replica"`
}

// Socket is the CSI socket of a process.
func Socket(dir, process string) string { return filepath.Join(dir, process, "csi.sock") }

// Log is the log file of a process.
func Log(dir, process string) string { return filepath.Join(dir, process, "log") }

// ReadLayout reads a directory's layout.
func ReadLayout(dir string) (Layout, error) {
	b, err := os.ReadFile(filepath.Join(dir, "standalone.json"))
	if err != nil {
		return Layout{}, fmt.Errorf("%s is not a standalone's directory: %w", dir, err)
	}
	l, err := parseLayout(b)
	if err != nil {
		return Layout{}, fmt.Errorf("%s/standalone.json: %w: %w", dir, volume.ErrCorrupt, err)
	}
	return l, nil
}

// parseLayout accepts what layout could have written. The names become paths of
// files that are removed, and of processes that are killed.
func parseLayout(b []byte) (Layout, error) {
	var l Layout
	if err := json.Unmarshal(b, &l); err != nil {
		return Layout{}, err
	}
	if len(l.Nodes) < 1 || len(l.Nodes) > maxNodes {
		return Layout{}, fmt.Errorf("%d nodes", len(l.Nodes))
	}
	addresses := []string{l.Store}
	for i, n := range l.Nodes {
		if n.Name != nodeName(i) {
			return Layout{}, fmt.Errorf("node %d is named %q", i+1, n.Name)
		}
		addresses = append(addresses, n.Agent, n.Replica)
	}
	if want := processNames(len(l.Nodes)); !slices.Equal(l.Processes, want) {
		return Layout{}, fmt.Errorf("processes are %q, not %q", l.Processes, want)
	}
	for _, addr := range addresses {
		if at, err := netip.ParseAddrPort(addr); err != nil || !at.Addr().IsLoopback() || at.Port() == 0 {
			return Layout{}, fmt.Errorf("%q is no loopback address with a port", addr)
		}
	}
	return l, nil
}

const maxNodes = 9

func nodeName(i int) string { return fmt.Sprintf("n%d", i+1) }

// processNames are the processes in the order in which they start.
func processNames(nodes int) []string {
	names := []string{StoreName, ControllerName}
	for i := range nodes {
		names = append(names, nodeName(i))
	}
	return names
}

// layout reads the directory's layout, or makes one with free ports.
func layout(o Options) (Layout, error) {
	l, err := ReadLayout(o.Dir)
	switch {
	case err == nil && len(l.Nodes) == o.Nodes:
		return l, nil
	case err == nil:
		return l, fmt.Errorf("%s was made for %d nodes, not %d: %w", o.Dir, len(l.Nodes), o.Nodes, volume.ErrPrecondition)
	case !errors.Is(err, os.ErrNotExist):
		return l, err
	}
	ports, err := freePorts(1 + 2*o.Nodes)
	if err != nil {
		return l, err
	}
	l = Layout{Store: ports[0], Processes: processNames(o.Nodes)}
	for i := range o.Nodes {
		l.Nodes = append(l.Nodes, Node{Name: nodeName(i), Agent: ports[1+2*i], Replica: ports[2+2*i]})
	}
	for _, p := range l.Processes {
		if err := os.MkdirAll(filepath.Join(o.Dir, p), 0o755); err != nil {
			return l, err
		}
	}
	return l, writeLayout(o.Dir, l)
}

// writeLayout replaces the file as a whole: half of one would be taken for
// damage.
func writeLayout(dir string, l Layout) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	next := filepath.Join(dir, "standalone.json.new")
	if err := os.WriteFile(next, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(dir, "standalone.json"))
}

// freePorts finds n loopback ports that are free now and lie outside the range
// from which the kernel takes ports for outgoing connections.
func freePorts(n int) ([]string, error) {
	var out []string
	for port := 20000 + os.Getpid()%8000; len(out) < n && port < 32000; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	if len(out) < n {
		return nil, fmt.Errorf("no %d free loopback ports between 20000 and 32000: %w", n, volume.ErrUnavailable)
	}
	return out, nil
}
