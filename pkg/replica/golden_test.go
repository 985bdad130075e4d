package replica

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
)

var updateGolden = flag.Bool("update", false, "write testdata/syscalls.golden anew")

// goldenEnv names the directory of the pool in the traced process.
const goldenEnv = "HOLDFAST_GOLDEN_POOL"

// TestGoldenTrace compares what one write, one flush and so on ask of the kernel
// with testdata/syscalls.golden: a dropped fsync, or one that moved behind the
// rename that needs it, shows as a difference. After a change that is meant, run
// it with -update and read the difference.
func TestGoldenTrace(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace: it sees the system calls as they are made")
	}
	dir := pooltest.Mount(t, pooltest.DefaultImageBytes)
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(deadline(t), strace, "-f", "-y", "-s", "0", "-o", out,
		"-e", "trace=openat,pwrite64,pwritev2,write,fdatasync,fsync,sync_file_range,rename,renameat,renameat2,fallocate,ftruncate,unlinkat,mkdirat,flock,faccessat,faccessat2",
		os.Args[0], "-test.run=^TestGoldenSteps$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), goldenEnv+"="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(text), "ptrace") {
			t.Skipf("needs the right to trace a process: %s", text)
		}
		t.Fatalf("%v\n%s", err, text)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := readableTrace(string(raw), filepath.Join(dir, "replicas", string(uid(1))))
	const golden = "testdata/syscalls.golden"
	if *updateGolden {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the system calls changed; got:\n%s\nwant:\n%s", got, want)
	}
}

// TestGoldenSteps is the traced process. The steps are marked by questions about
// files that don't exist.
func TestGoldenSteps(t *testing.T) {
	dir := os.Getenv(goldenEnv)
	if dir == "" {
		return // TestGoldenTrace runs it
	}
	p := pooltest.Open(t, pool.Options{Name: "p", Path: dir, ReserveBytes: 1 << 20, OverProvision: 10})
	s := newServer(t, Options{Pools: Pools(p)})
	create(t, s, uid(1), 4*mib)
	mark := func(what string) { _ = unix.Access("/step "+what, unix.F_OK) } // fails, and is seen
	mark("open: epoch 1")
	ses := open(t, s, opening(uid(1), 1, 1))
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	mark("first write to a region")
	must(block.WriteAt(ses, pattern(4096, 1), 0))
	mark("another write to it")
	must(block.WriteAt(ses, pattern(4096, 2), 4096))
	mark("durable write")
	must(block.Do(ses, &block.IO{Op: block.OpWrite, FUA: true, Off: 8192, Len: 4096, Data: pattern(4096, 3)}))
	mark("trim")
	must(block.Do(ses, &block.IO{Op: block.OpTrim, Off: 0, Len: 4096}))
	mark("flush")
	must(block.Do(ses, &block.IO{Op: block.OpFlush}))
	mark("grow")
	must(ses.Grow(deadline(t), 8*mib))
	mark("open: epoch 2")
	ses = open(t, s, opening(uid(1), 2, 1))
	mark("close")
	must(ses.Close())
	mark("end")
}

var (
	callPattern = regexp.MustCompile(`^\d+ +(\w+)\((.*)\) += `)
	pathPattern = regexp.MustCompile(`</[^>]*>|"/[^"]*"`)
	tempPattern = regexp.MustCompile(`\.tmp[-\w]*`)
)

// readableTrace keeps the calls on files of the replica, with what matters.
func readableTrace(raw, dir string) string {
	var out strings.Builder
	begun := false
	// A call that another thread's interrupted stands in two lines.
	halves := map[string]string{}
	for line := range strings.Lines(raw) {
		line = strings.TrimSpace(line)
		pid, _, _ := strings.Cut(line, " ")
		if head, ok := strings.CutSuffix(line, " <unfinished ...>"); ok {
			halves[pid] = head
			continue
		}
		if _, tail, ok := strings.Cut(line, "resumed>"); ok {
			line = halves[pid] + tail
		}
		m := callPattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		call, args := m[1], m[2]
		if _, step, ok := strings.Cut(args, `"/step `); ok {
			step, _, _ = strings.Cut(step, `"`)
			fmt.Fprintf(&out, "-- %s\n", step)
			begun = true
			continue
		}
		if !begun || !strings.Contains(args, dir) {
			continue
		}
		var files []string
		for _, p := range pathPattern.FindAllString(args, -1) {
			if p = p[1 : len(p)-1]; strings.HasPrefix(p, dir) {
				name := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
				files = append(files, tempPattern.ReplaceAllString(name+map[bool]string{true: "./"}[name == ""], ".tmp"))
			}
		}
		fmt.Fprintf(&out, "%s %s%s\n", call, strings.Join(files, " "), detail(call, args))
	}
	return out.String()
}

// detail is what else of a call matters: where, and with which flags.
func detail(call, args string) string {
	f := strings.Split(args, ", ")
	switch call {
	case "openat":
		if strings.Contains(args, "O_RDONLY") || strings.Contains(args, "O_DIRECTORY") {
			return " to read"
		}
		return ""
	case "pwrite64":
		return fmt.Sprintf(": %s bytes at %s", f[len(f)-2], f[len(f)-1])
	case "pwritev2":
		return fmt.Sprintf(": at %s %s", f[len(f)-2], f[len(f)-1])
	case "fallocate", "flock":
		return ": " + f[1]
	case "ftruncate":
		return ": to " + f[1]
	}
	return ""
}
