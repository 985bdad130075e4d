package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// childDir, in the environment, makes the test binary hold an export in that
// directory until it is killed.
const childDir = "EXPORT_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		e, err := OpenFUSE(context.Background(), FUSEOptions{Dir: dir, Volume: "hv-child", Device: blocktest.NewMemory(320 << 20), Logger: quiet})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(e.Device())
		select {}
	}
	os.Exit(m.Run())
}

// startChild starts a process that holds an export in dir, and returns the
// device and what kills it.
func startChild(t *testing.T, dir string) (device string, kill func()) {
	t.Helper()
	needHost(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := false
	kill = func() {
		if !dead {
			dead = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(func() {
		kill()
		if err := Sweep(minute(t), dir, quiet); err != nil {
			t.Errorf("Sweep: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "/dev/loop") {
		t.Fatalf("the child said %q: %v", line, err)
	}
	return strings.TrimSpace(line), kill
}

// leftovers lists mounts and loop devices below dir.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	mounts, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.fstype == fuseType && strings.HasPrefix(m.point, dir) {
			all = append(all, m.point)
		}
	}
	numbers, err := loopNumbers()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		if name, err := backingName(n); err == nil && strings.HasPrefix(name, dir) {
			all = append(all, fmt.Sprintf("/dev/loop%d on %s", n, name))
		}
	}
	return all
}

func TestSweepDead(t *testing.T) {
	state := t.TempDir()
	device, kill := startChild(t, filepath.Join(state, "hv-child"))
	if err := Sweep(minute(t), state, quiet); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("Sweep of a live export: %v, want ErrPrecondition", err)
	}
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatalf("the live export was harmed: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	kill()
	if err := Sweep(minute(t), state, quiet); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if err := Sweep(minute(t), filepath.Join(state, "missing"), quiet); err != nil {
		t.Errorf("Sweep of no directory: %v", err)
	}
}

// TestSweepMounted kills the process under a mounted file system. Sweep must
// not wait for it, and the device must go once it is unmounted; meanwhile the
// same volume can be exported again in the same place.
func TestSweepMounted(t *testing.T) {
	needTool(t, "mkfs.xfs")
	state := t.TempDir()
	export := filepath.Join(state, "hv-child")
	device, kill := startChild(t, export)
	run(t, "mkfs.xfs", "-q", device)
	dir, unmount := mountAt(t, device, "xfs")
	kill()
	if _, err := os.ReadFile(filepath.Join(dir, "x")); err == nil {
		t.Error("a file that never was can be read")
	}
	e, err := OpenFUSE(minute(t), FUSEOptions{Dir: export, Volume: "hv-child", Device: blocktest.NewMemory(1 << 20), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if e.Device() == device {
		t.Errorf("%s is in use twice", device)
	}
	closeExport(t, e)
	unmount()
	number := 0
	if _, err := fmt.Sscanf(device, "/dev/loop%d", &number); err != nil {
		t.Fatal(err)
	}
	if err := poll(minute(t), func() bool { _, err := backingName(number); return err != nil }); err != nil {
		t.Errorf("%s is still attached after its file system was unmounted", device)
	}
	if left := leftovers(t, state); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
