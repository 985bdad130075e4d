package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/store/storetest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// childDir and childListen make the test binary an embedded store in a process
// of its own, for tests that kill it.
const (
	childDir    = "HOLDFAST_TEST_STORE_DIR"
	childListen = "HOLDFAST_TEST_STORE_LISTEN"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		e, err := etcd.StartEmbedded(context.Background(), etcd.EmbeddedOptions{Dir: dir, ListenClient: os.Getenv(childListen)})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("serving:", e.Endpoint())
		<-e.Done()
		return
	}
	os.Exit(m.Run())
}

// child is a store in another process.
type child struct {
	kill     func() // kill -9, and waits for the end; may be called again
	endpoint string
	problem  string // what it said instead of serving
}

func startChild(t *testing.T, dir, listen string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childDir+"="+dir, childListen+"="+listen)
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &child{kill: sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})}
	t.Cleanup(c.kill)
	line, _ := bufio.NewReader(out).ReadString('\n')
	if endpoint, ok := strings.CutPrefix(strings.TrimSpace(line), "serving: "); ok {
		c.endpoint = endpoint
	} else {
		c.problem = line
	}
	return c
}

func TestConformanceExternal(t *testing.T) {
	c := startChild(t, t.TempDir(), "127.0.0.1:0")
	if c.endpoint == "" {
		t.Fatal(c.problem)
	}
	storetest.Run(t, open(c.endpoint))
}

// Nothing that was acknowledged is lost by kill -9, and clients and watches come
// back by themselves.
func TestKilledServerComesBack(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, "127.0.0.1:0")
	if c.endpoint == "" {
		t.Fatal(c.problem)
	}
	endpoint := c.endpoint
	s := connect(t, etcd.Options{Endpoints: []string{endpoint}})
	n, err := s.Nodes().Create(t.Context(), storetest.Node("a"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.Nodes().Watch(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		acknowledged, tried := writeUntilKilled(t, s, n, c)
		c.kill() // waits for the end of the one under way
		if c = startChild(t, dir, endpoint); c.endpoint != endpoint {
			t.Fatalf("round %d: restarted at %q: %s", round, c.endpoint, c.problem)
		}
		n = getAgain(t, s)
		if n.Heartbeat < acknowledged || n.Heartbeat > tried {
			t.Fatalf("round %d: heartbeat %d, acknowledged %d, tried %d", round, n.Heartbeat, acknowledged, tried)
		}
		for ev := range events {
			if ev.Object.Version == n.Version {
				break
			}
		}
	}
}

// writeUntilKilled updates n over and over, kills the server on the way, and
// returns the last update acknowledged and the last one tried.
func writeUntilKilled(t *testing.T, s *etcd.Store, n volume.Node, c *child) (acknowledged, tried uint64) {
	t.Helper()
	for i := 0; ; i++ {
		if i == 50 {
			go c.kill()
		}
		n.Heartbeat++
		tried = n.Heartbeat
		updated, err := s.Nodes().Update(t.Context(), n)
		if err != nil {
			if !errors.Is(err, volume.ErrUnavailable) {
				t.Fatal(err)
			}
			return n.Heartbeat - 1, tried
		}
		n = updated
	}
}

// getAgain reads node "a" once the server is back.
func getAgain(t *testing.T, s *etcd.Store) volume.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	n, err := s.Nodes().Get(ctx, "a") // reads wait for the connection
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	startEmbedded(t, dir, "127.0.0.1:0")
	_, err := etcd.StartEmbedded(t.Context(), etcd.EmbeddedOptions{Dir: dir, ListenClient: "127.0.0.1:0"})
	if !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("in this process: %v", err)
	}
	if c := startChild(t, dir, "127.0.0.1:0"); !strings.Contains(c.problem, "in use by another process") {
		t.Errorf("in another process: %q, %q", c.endpoint, c.problem)
	}
}
