package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
	"github.com/holdfast-csi/holdfast/pkg/block/blocktest"
)

// The tests of this file run other people's clients against our server. Each
// needs its tool, and is skipped where that is missing.

// tool runs a program and returns what it prints.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		packages := map[string]string{"qemu-img": "qemu-utils", "fio": "fio", "nbdsh": "python3-libnbd"}
		pkg, ok := packages[name]
		if !ok {
			pkg = "libnbd-bin"
		}
		t.Skipf("needs %s: install the Debian package %s", name, pkg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	// nbdsh asks env for python3, and libnbd's module is the system's alone.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// clientBytes is the size of the devices that are copied about.
const clientBytes = 24 << 20

// sparse is a device with data in it here and there.
func sparse(t *testing.T) (*export, string) {
	t.Helper()
	x := &export{Memory: blocktest.NewMemory(clientBytes)}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 20 {
		p := fill(make([]byte, 4096*(1+rng.IntN(100))), byte(i))
		if err := block.WriteAt(x, p, int64(rng.IntN(clientBytes-len(p)))&^4095); err != nil {
			t.Fatal(err)
		}
	}
	return x, "nbd://" + one(t, x).addr + "/x"
}

func TestNbdinfo(t *testing.T) {
	noneLeft(t)
	x, uri := sparse(t)
	var info struct {
		Protocol string
		Exports  []struct {
			Name     string      `json:"export-name"`
			Size     int64       `json:"export-size"`
			Contexts []string    `json:"contexts"`
			ReadOnly bool        `json:"is_read_only"`
			Flush    bool        `json:"can_flush"`
			FUA      bool        `json:"can_fua"`
			Trim     bool        `json:"can_trim"`
			Zero     bool        `json:"can_zero"`
			DF       bool        `json:"can_df"`
			Multi    bool        `json:"can_multi_conn"`
			Cache    bool        `json:"can_cache"`
			Minimum  json.Number `json:"block_size_minimum"`
			Maximum  json.Number `json:"block_size_maximum"`
		}
	}
	out := tool(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	e := info.Exports[0]
	if info.Protocol != "newstyle-fixed" || e.Name != "x" || e.Size != x.Size() || e.ReadOnly || !e.Flush || !e.FUA || !e.Trim || !e.Zero ||
		!e.DF || e.Multi || e.Cache || e.Minimum.String() != "1" || e.Maximum.String() != "1048576" || len(e.Contexts) != 1 {
		t.Errorf("nbdinfo says %s", out)
	}
	if out := tool(t, "nbdinfo", "--list", strings.TrimSuffix(uri, "x")); !strings.Contains(out, `export="x"`) {
		t.Errorf("nbdinfo --list says %s", out)
	}
	var pieces []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--map", "--json", uri)), &pieces); err != nil {
		t.Fatal(err)
	}
	checkMap(t, x, len(pieces), func(i int) (int64, int64, bool) {
		return pieces[i].Offset, pieces[i].Length, pieces[i].Type == 3
	})
}

// checkMap holds what a client was told about holes against the content.
func checkMap(t *testing.T, x *export, n int, piece func(i int) (off, length int64, hole bool)) {
	t.Helper()
	data, end, holes := x.Bytes(), int64(0), 0
	for i := range n {
		off, length, hole := piece(i)
		if off != end || length <= 0 || off+length > int64(len(data)) {
			t.Fatalf("a piece at %d+%d after %d", off, length, end)
		}
		end += length
		zero := len(bytes.TrimLeft(data[off:end], "\x00")) == 0
		if zero != hole {
			t.Errorf("%d+%d: hole %t, zero %t", off, length, hole, zero)
		}
		if hole {
			holes++
		}
	}
	if end != int64(len(data)) || holes < 2 {
		t.Errorf("the map ends at %d and has %d holes", end, holes)
	}
}

func TestNbdcopy(t *testing.T) {
	noneLeft(t)
	x, uri := sparse(t)
	file := filepath.Join(t.TempDir(), "copy")
	for _, args := range [][]string{{}, {"--requests=64", "--request-size=1048576"}, {"--synchronous"}} {
		tool(t, "nbdcopy", append(args, uri, file)...)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, x.Bytes()) {
			t.Fatalf("nbdcopy %v: the copy differs (%v)", args, err)
		}
		y := &export{Memory: blocktest.NewMemory(clientBytes)}
		if err := block.WriteAt(y, fill(make([]byte, 1<<20), 1), 5<<20); err != nil { // what must go
			t.Fatal(err)
		}
		tool(t, "nbdcopy", append(args, "--flush", file, "nbd://"+one(t, y).addr+"/x")...)
		if !bytes.Equal(y.Bytes(), x.Bytes()) {
			t.Fatalf("nbdcopy %v: the copy back differs", args)
		}
	}
}

func TestQemuImg(t *testing.T) {
	noneLeft(t)
	x, uri := sparse(t)
	dir := t.TempDir()
	rawFile, qcow := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")

	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, rawFile)
	if got, err := os.ReadFile(rawFile); err != nil || !bytes.Equal(got, x.Bytes()) {
		t.Fatalf("convert to a file: the copy differs (%v)", err)
	}
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, qcow)
	y := &export{Memory: blocktest.NewMemory(clientBytes)}
	yURI := "nbd://" + one(t, y).addr + "/x"
	tool(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", qcow, yURI)
	if !bytes.Equal(y.Bytes(), x.Bytes()) {
		t.Fatal("convert from a file: the copy differs")
	}
	var pieces []struct {
		Start, Length int64
		Zero          bool
	}
	if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "-f", "raw", "--output=json", uri)), &pieces); err != nil {
		t.Fatal(err)
	}
	checkMap(t, x, len(pieces), func(i int) (int64, int64, bool) { return pieces[i].Start, pieces[i].Length, pieces[i].Zero })

	// A qcow2 image inside the export: many small writes, flushes and FUA.
	z := &export{Memory: blocktest.NewMemory(clientBytes + 8<<20)}
	zURI := "nbd://" + one(t, z).addr + "/x"
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", rawFile, qcow)
	tool(t, "qemu-img", "create", "-f", "qcow2", zURI, "24M")
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", rawFile, zURI)
	if out := tool(t, "qemu-img", "check", "-f", "qcow2", zURI); !strings.Contains(out, "No errors") {
		t.Errorf("check: %s", out)
	}
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", zURI, rawFile)
}

func TestFio(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(64 << 20)}
	uri := "nbd://" + one(t, x).addr + "/x"
	for _, tc := range []struct{ name, args string }{
		{"small random writes", "--rw=randwrite --bs=4k --iodepth=32 --size=16m"},
		{"unaligned mixture", "--rw=randrw --bsrange=512-64k --blockalign=512 --iodepth=16 --size=16m"},
		{"large writes", "--rw=write --bs=1m --iodepth=8 --size=48m"},
		{"flushes", "--rw=randwrite --bs=4k --iodepth=4 --fsync=8 --size=2m"},
		{"trims", "--rw=randtrim --bs=64k --iodepth=8 --size=16m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"--name=t", "--ioengine=nbd", "--uri=" + uri, "--verify_state_save=0", "--minimal"}
			if !strings.Contains(tc.args, "trim") {
				args = append(args, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
			}
			out, err := fio(t, append(args, strings.Fields(tc.args)...))
			if err != nil && strings.Contains(out, "engine nbd not loadable") {
				t.Skip("needs fio with the nbd engine")
			}
			if err != nil {
				t.Fatalf("fio: %v\n%s", err, out)
			}
		})
	}
	if x.Count(block.OpFlush) == 0 || x.Count(block.OpTrim) == 0 {
		t.Error("no flush or no trim reached the device")
	}
}

func fio(t *testing.T, args []string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("needs fio: install the Debian package fio")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// nbdshScript checks, in libnbd's words, what the other tools don't use.
const nbdshScript = `
import errno
h.add_meta_context("base:allocation")
h.connect_uri(uri)
assert h.get_protocol() == "newstyle-fixed", h.get_protocol()
assert h.get_structured_replies_negotiated()
size = h.get_size()
assert size == 64 << 20, size
for can in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_df):
    assert can(), can
for cannot in (h.can_multi_conn, h.can_cache, h.can_fast_zero, h.is_read_only, h.is_rotational):
    assert not cannot(), cannot
assert (h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED), h.get_block_size(nbd.SIZE_MAXIMUM)) == (1, 4096, 1 << 20)

h.pwrite(b"hello", 4095, nbd.CMD_FLAG_FUA)
assert h.pread(7, 4094) == b"\0hello\0"
chunks = []
def chunk(data, offset, status, err): chunks.append((bytes(data), offset, status))
h.pread_structured(7, 4094, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(b"\0hello\0", 4094, nbd.READ_DATA)], chunks
h.pwrite(b"x" * (1 << 20), size - (1 << 20))
h.trim(1 << 20, size - (1 << 20))
assert h.pread(4096, size - 4096) == bytes(4096)
h.pwrite(b"x" * 8192, 1 << 20)
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, (1 << 20) + 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 1 << 20) == bytes(8192)
h.flush()

# Many requests in flight, answered in whatever order.
buffers, cookies = [], []
for i in range(200):
    b = nbd.Buffer.from_bytearray(bytearray([i + 1]) * 4096)
    cookies.append(h.aio_pwrite(b, (4 << 20) + i * 4096)); buffers.append(b)
    if len(cookies) >= 32:
        while h.aio_in_flight() > 16: h.poll(-1)
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
for i in range(200):
    assert h.pread(4096, (4 << 20) + i * 4096) == bytes([i + 1]) * 4096, i

# What must be refused, by the specification's errors.
h.set_strict_mode(0)
def refused(f, want):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum == want, (e.string, e.errnum, want)
    else:
        assert False, "not refused"
refused(lambda: h.pread(512, size), errno.EINVAL)
refused(lambda: h.pread(4096, size - 1), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * 512, size), errno.ENOSPC)
refused(lambda: h.zero(4096, size - 1), errno.ENOSPC)
refused(lambda: h.trim(4096, size - 1), errno.EINVAL)
refused(lambda: h.cache(4096, 0), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * ((1 << 20) + 1), 0), errno.EINVAL)
refused(lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO), errno.EINVAL)
assert h.pread(5, 4095) == b"hello"

# Block status, all and one.
seen = []
def extents(context, offset, entries, err):
    assert context == "base:allocation"
    seen.append(list(entries))
h.block_status(1 << 20, 0, extents)
assert seen[0] == [8192, 0, (1 << 20) - 8192, 3], seen
seen.clear()
h.block_status(1 << 20, 0, extents, nbd.CMD_FLAG_REQ_ONE)
assert seen[0] == [8192, 0], seen
h.shutdown()
`

func TestNbdsh(t *testing.T) {
	noneLeft(t)
	x := &export{Memory: blocktest.NewMemory(64 << 20)}
	b := &backend{exports: map[string]Export{"x": x, "ro": &export{Memory: blocktest.NewMemory(4 << 20), readOnly: true}}}
	s := serve(t, ServerOptions{Backend: b})
	uri := "nbd://" + s.addr + "/"
	tool(t, "nbdsh", "-c", "uri = "+`"`+uri+`x"`, "-c", nbdshScript)
	tool(t, "nbdsh", "-u", uri+"ro", "-c", `
import errno
assert h.is_read_only()
h.set_strict_mode(0)
try:
    h.pwrite(b"x", 0); assert False
except nbd.Error as e:
    assert e.errnum == errno.EPERM, e
h.shutdown()
`)
	tool(t, "nbdsh", "-c", `
try:
    h.connect_uri("`+uri+`nothing"); assert False
except nbd.Error as e:
    assert "no export named" in e.string, e.string
`)
	tool(t, "nbdsh", "-c", `
h.set_tls(nbd.TLS_ALLOW)
h.connect_uri("`+uri+`x")
assert not h.get_tls_negotiated()
h.shutdown()
`)
	// The oldest way: EXPORT_NAME, without structured replies.
	tool(t, "nbdsh", "-c", `
h.set_handshake_flags(0)
h.set_request_structured_replies(False)
h.set_export_name("x")
host, port = "`+s.addr+`".split(":")
h.connect_tcp(host, port)
assert h.get_size() == 64 << 20
assert h.pread(5, 4095) == b"hello"
h.shutdown()
`)
}
