package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// The tests of this file run other people's NBD clients on replicas in a real
// pool. Each needs its tool, and is skipped where that is missing.

const (
	clientBytes = 24 * mib
	toolTime    = 2 * time.Minute
)

// needs skips the test where a tool is missing.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	packages := map[string]string{"qemu-img": "qemu-utils", "fio": "fio", "nbdsh": "python3-libnbd", "nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin"}
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: install the Debian package %s", name, packages[name])
		}
	}
}

// tool runs a program and returns what it prints.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	// nbdsh asks env for python3, and libnbd's module is the system's alone.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

func mustTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tool(t, name, args...)
	must(t, err)
	return out
}

// clients is a server on loopback, with replicas for the clients.
type clients struct {
	t       *testing.T
	s       *Server
	addr    string
	session volume.Session
}

func newClients(t *testing.T) *clients {
	t.Helper()
	s := newServer(t, Options{})
	create(t, s, uid(1), clientBytes)
	return &clients{t: t, s: s, addr: serveNBD(t, s)}
}

// uri opens the replica's next session, for the one connection that a session
// takes, and returns its URI.
func (c *clients) uri(u volume.UID) string {
	c.t.Helper()
	c.session++
	return c.at(open(c.t, c.s, opening(u, 1, c.session)).Name().String())
}

func (c *clients) at(name string) string { return "nbd://" + c.addr + "/" + name }

func (c *clients) view(u volume.UID) string { return c.at(string(u)) }

func (c *clients) image(u volume.UID) []byte {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(replicaDir(c.s, u), imageFile))
	must(c.t, err)
	return b
}

// sparse puts data into the replica here and there.
func (c *clients) sparse(u volume.UID) {
	c.t.Helper()
	c.session++
	ses := open(c.t, c.s, opening(u, 1, c.session))
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20 {
		p := pattern(4096*(1+rng.IntN(100)), byte(i))
		must(c.t, block.WriteAt(ses, p, int64(rng.IntN(clientBytes-len(p)))&^4095))
	}
	must(c.t, block.Flush(ses))
}

// described is the part of nbdinfo's answer that is checked.
type described struct {
	Name     string `json:"export-name"`
	Size     int64  `json:"export-size"`
	ReadOnly bool   `json:"is_read_only"`
	Flush    bool   `json:"can_flush"`
	FUA      bool   `json:"can_fua"`
	Trim     bool   `json:"can_trim"`
	Zero     bool   `json:"can_zero"`
	Multi    bool   `json:"can_multi_conn"`
}

func describe(t *testing.T, args ...string) []described {
	t.Helper()
	var info struct{ Exports []described }
	out := mustTool(t, "nbdinfo", append([]string{"--json"}, args...)...)
	must(t, json.Unmarshal([]byte(out), &info))
	return info.Exports
}

func TestNbdinfo(t *testing.T) {
	needs(t, "nbdinfo")
	c := newClients(t)
	c.sparse(uid(1))
	create(t, c.s, uid(2), mib)

	listed := map[string]int64{}
	for _, e := range describe(t, "--list", "nbd://"+c.addr) {
		if !e.ReadOnly {
			t.Errorf("%s is listed as writable", e.Name)
		}
		listed[e.Name] = e.Size
	}
	if len(listed) != 2 || listed[string(uid(1))] != clientBytes || listed[string(uid(2))] != mib {
		t.Errorf("listed are %v", listed)
	}
	view := describe(t, c.view(uid(1)))
	if len(view) != 1 || view[0].Name != string(uid(1)) || view[0].Size != clientBytes || !view[0].ReadOnly {
		t.Errorf("the view is %+v", view)
	}
	c.checkMap(uid(1))

	// --no-content: the one connection is all there is.
	ses := describe(t, "--no-content", c.uri(uid(1)))
	want := described{fmt.Sprintf("%s/%s/1/%d", vol, uid(1), c.session), clientBytes, false, true, true, true, true, false}
	if len(ses) != 1 || ses[0] != want {
		t.Errorf("the session is %+v, want %+v", ses, want)
	}
}

// checkMap holds what nbdinfo is told about holes against the image.
func (c *clients) checkMap(u volume.UID) {
	c.t.Helper()
	var pieces []struct {
		Offset, Length int64
		Type           int
	}
	must(c.t, json.Unmarshal([]byte(mustTool(c.t, "nbdinfo", "--map", "--json", c.view(u))), &pieces))
	data, end, holes := c.image(u), int64(0), 0
	for _, p := range pieces {
		if p.Offset != end || p.Length <= 0 || p.Offset+p.Length > int64(len(data)) {
			c.t.Fatalf("a piece at %d+%d after %d", p.Offset, p.Length, end)
		}
		end += p.Length
		if p.Type != 0 { // a hole; data may be zeroes
			holes++
			if len(bytes.TrimLeft(data[p.Offset:end], "\x00")) != 0 {
				c.t.Errorf("%d+%d is no hole", p.Offset, p.Length)
			}
		}
	}
	if end != int64(len(data)) || holes < 2 {
		c.t.Errorf("the map ends at %d and has %d holes", end, holes)
	}
}

func TestNbdcopy(t *testing.T) {
	needs(t, "nbdcopy")
	c := newClients(t)
	c.sparse(uid(1))
	file := filepath.Join(t.TempDir(), "copy")
	mustTool(t, "nbdcopy", c.view(uid(1)), file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, c.image(uid(1))) {
		t.Fatalf("the copy of the view differs (%v)", err)
	}

	create(t, c.s, uid(2), clientBytes)
	c.sparse(uid(2))
	mustTool(t, "nbdcopy", "--flush", c.view(uid(1)), c.uri(uid(2))) // over what must go
	if !bytes.Equal(c.image(uid(2)), c.image(uid(1))) {
		t.Error("the replica that was copied to differs")
	}
	must(t, os.Remove(file))
	mustTool(t, "nbdcopy", "--synchronous", c.uri(uid(2)), file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, c.image(uid(1))) {
		t.Errorf("the copy of the session differs (%v)", err)
	}
}

func TestQemuImg(t *testing.T) {
	needs(t, "qemu-img")
	c := newClients(t)
	c.sparse(uid(1))
	create(t, c.s, uid(2), clientBytes)
	qcow := filepath.Join(t.TempDir(), "qcow2")
	mustTool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", c.uri(uid(1)), qcow)
	mustTool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, c.view(uid(1)))
	mustTool(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", qcow, c.uri(uid(2)))
	if !bytes.Equal(c.image(uid(2)), c.image(uid(1))) {
		t.Error("the replica that was converted to differs")
	}
	mustTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", c.uri(uid(1)), c.uri(uid(2)))

	// A difference is seen.
	c.session++
	must(t, block.WriteAt(open(t, c.s, opening(uid(2), 1, c.session)), []byte{1}, clientBytes-1))
	if _, err := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", c.uri(uid(1)), c.uri(uid(2))); err == nil || !strings.Contains(err.Error(), "mismatch") {
		t.Errorf("compare with a changed replica: %v", err)
	}
}

// sessions is a backend that opens a session for each connection: fio makes one
// to ask for the size, closes it, and makes another for its work.
type sessions struct {
	nbd.Backend
	s    *Server
	last atomic.Uint32
}

func (b *sessions) Open(ctx context.Context, _ string) (nbd.Export, error) {
	ses, err := b.s.Open(ctx, opening(uid(1), 1, volume.Session(b.last.Add(1))))
	if err != nil {
		return nil, err
	}
	return b.Backend.Open(ctx, ses.Name().String())
}

func TestFio(t *testing.T) {
	needs(t, "fio")
	s := newServer(t, Options{})
	create(t, s, uid(1), 64*mib)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	serveBackend(t, &sessions{Backend: s.NBD(), s: s}, l)
	for _, tc := range []struct{ name, args string }{
		{"small random writes", "--rw=randwrite --bs=4k --iodepth=32 --size=16m"},
		{"unaligned mixture", "--rw=randrw --bsrange=512-64k --blockalign=512 --iodepth=16 --size=16m"},
		{"large writes", "--rw=write --bs=1m --iodepth=8 --size=48m"},
		{"flushes", "--rw=randwrite --bs=4k --iodepth=4 --fsync=8 --size=2m"},
		{"trims", "--rw=randtrim --bs=64k --iodepth=8 --size=16m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"--name=t", "--ioengine=nbd", "--uri=nbd://" + l.Addr().String() + "/fio", "--verify_state_save=0", "--minimal"}
			if !strings.Contains(tc.args, "trim") {
				args = append(args, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
			}
			_, err := tool(t, "fio", append(args, strings.Fields(tc.args)...)...)
			if err != nil && strings.Contains(err.Error(), "engine nbd not loadable") {
				t.Skip("needs fio with the nbd engine")
			}
			must(t, err)
		})
	}
}

// nbdshSession checks, in libnbd's words, the requests on a session.
const nbdshSession = `
import errno
h.add_meta_context("base:allocation")
h.connect_uri(uri)
size = h.get_size()
assert size == 24 << 20 and not h.is_read_only(), size
h.pwrite(b"hello", 4095, nbd.CMD_FLAG_FUA)
assert h.pread(7, 4094) == b"\0hello\0"
h.pwrite(b"x" * (1 << 20), size - (1 << 20))
h.trim(1 << 20, size - (1 << 20))
assert h.pread(4096, size - 4096) == bytes(4096)
h.pwrite(b"x" * 12288, 1 << 20)
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, (1 << 20) + 4096, nbd.CMD_FLAG_FUA)
assert h.pread(12288, 1 << 20) == bytes(8192) + b"x" * 4096
h.flush()

seen = []
def extents(context, offset, entries, err):
    assert context == "base:allocation"
    seen.extend(zip(entries[0::2], entries[1::2]))
while sum(n for n, _ in seen) < size:
    at = sum(n for n, _ in seen)
    h.block_status(size - at, at, extents)
assert sum(n for n, _ in seen) == size and seen[-1][1] == 3, seen
assert 0 in [flags for _, flags in seen], seen

h.set_strict_mode(0)
def refused(f, want):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == want, (e.string, e.errnum, want)
    else:
        assert False, "not refused"
refused(lambda: h.pread(4096, size - 1), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * 512, size), errno.ENOSPC)
assert h.pread(5, 4095) == b"hello"

try:
    nbd.NBD().connect_uri(uri); assert False, "a second connection"
except nbd.Error as e:
    assert "server policy" in e.string, e.string
h.shutdown()
`

// nbdshView checks that a view changes nothing.
const nbdshView = `
import errno
h.connect_uri(uri)
assert h.is_read_only()
assert h.pread(5, 4095) == b"hello"
h.set_strict_mode(0)
for change in (lambda: h.pwrite(b"x" * 4096, 0), lambda: h.trim(4096, 0), lambda: h.zero(4096, 0)):
    try:
        change(); assert False, "a view was changed"
    except nbd.Error as e:
        assert e.errnum == errno.EPERM, e
h.shutdown()
`

func TestNbdsh(t *testing.T) {
	needs(t, "nbdsh")
	c := newClients(t)
	uri := c.uri(uid(1))
	// Slashes may be percent-encoded or not.
	encoded := c.at(strings.ReplaceAll(strings.TrimPrefix(uri, c.at("")), "/", "%2F"))
	mustTool(t, "nbdsh", "-c", `uri = "`+encoded+`"`, "-c", nbdshSession)
	image := c.image(uid(1))
	if string(image[4095:4100]) != "hello" || len(bytes.Trim(image[1*mib:1*mib+8192], "\x00")) != 0 || image[1*mib+8192] != 'x' {
		t.Error("the image does not have what was written")
	}
	mustTool(t, "nbdsh", "-c", `uri = "`+c.view(uid(1))+`"`, "-c", nbdshView)
	if !bytes.Equal(c.image(uid(1)), image) {
		t.Error("the image was changed through a view")
	}

	// An older session is refused, whoever asks.
	c.uri(uid(1))
	mustTool(t, "nbdsh", "-c", `
try:
    h.connect_uri("`+uri+`"); assert False
except nbd.Error as e:
    assert "server policy" in e.string, e.string
`)
}
