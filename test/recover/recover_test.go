// Package recover follows docs/recover-by-hand.md to the letter: it makes a
// replica with the real replica server, ends everything of Holdfast, and runs
// the document's own commands in one shell.
package recover

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/pool/pooltest"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const (
	document = "../../docs/recover-by-hand.md"
	volumeID = volume.ID("hv-0123456789abcdef0123456789abcdef")
	uid      = volume.UID("5c1d6f0e-8a53-4c3e-9f7d-0d9a8e5b7c21")
)

// commands returns the document's shell blocks by the word behind "sh".
func commands(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```(.*?)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		name, ok := strings.CutPrefix(m[1], "sh ")
		if !ok || blocks[name] != "" {
			t.Fatalf("block %q: every block is shell and has a name of its own", m[1])
		}
		blocks[name] = m[2]
	}
	return blocks
}

// host is where a replica is, with nothing of Holdfast running.
type host struct {
	poolDir, image string // image is "" for a directory pool
	content        map[string][]byte
}

// makeReplica makes a pool and a replica with a file system and files in it, and
// closes them.
func makeReplica(t *testing.T, mkfs []string) host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("needs %s: %v", mkfs[0], err)
	}
	dir := t.TempDir()
	h := host{poolDir: filepath.Join(dir, "mnt"), image: filepath.Join(dir, "pool.img"), content: map[string][]byte{}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	im, err := pool.OpenImage(ctx, pool.ImageOptions{Path: h.image, MountPoint: h.poolDir, SizeBytes: 768 << 20, Logger: pooltest.Logger(t)})
	must(t, err)
	p, err := pool.Open(ctx, pool.Options{Name: "p", Path: h.poolDir, Logger: pooltest.Logger(t)})
	must(t, err)
	s, err := replica.NewServer(replica.Options{Pools: replica.Pools(p), Logger: pooltest.Logger(t)})
	must(t, err)
	must(t, s.Create(ctx, replica.CreateOptions{Volume: volumeID, UID: uid, Pool: "p", SizeBytes: 320 << 20}))
	path, release, err := s.ClaimLoop(ctx, replica.OpenOptions{Volume: volumeID, UID: uid, Epoch: 4, Session: 1, Holder: "node-1"})
	must(t, err)
	h.fill(t, path, mkfs)
	release()
	must(t, s.Close())
	must(t, p.Close())
	must(t, im.Close(ctx))
	return h
}

// fill does what a pod on the volume did.
func (h host) fill(t *testing.T, path string, mkfs []string) {
	t.Helper()
	loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "--sector-size", "4096", path))
	defer run(t, "losetup", "-d", loop)
	run(t, mkfs[0], append(mkfs[1:], loop)...)
	mnt := t.TempDir()
	run(t, "mount", loop, mnt)
	defer run(t, "umount", mnt)
	h.content["letter.txt"] = []byte("dear administrator\n")
	h.content["large.bin"] = bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for name, data := range h.content {
		must(t, os.WriteFile(filepath.Join(mnt, name), data, 0o600))
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// follow runs a script as the reader's one shell, and cleans up whatever it left
// when it failed.
func follow(t *testing.T, h host, script string) {
	t.Helper()
	t.Cleanup(func() {
		for _, mnt := range []string{"/mnt/holdfast-volume", "/mnt/holdfast-pool", h.poolDir} {
			for unix.Unmount(mnt, unix.MNT_DETACH) == nil {
				t.Errorf("%s was still mounted", mnt)
			}
			if mnt != h.poolDir {
				_ = os.Remove(mnt) // gone already, unless a command failed
			}
		}
		for _, line := range strings.Split(run(t, "losetup", "-n", "-O", "NAME,BACK-FILE"), "\n") {
			if f := strings.Fields(line); len(f) > 1 && (strings.HasPrefix(f[1], filepath.Dir(h.image)) || strings.HasSuffix(f[1], "/rescue.img")) {
				t.Errorf("%s was still attached", line)
				_ = exec.Command("losetup", "-d", f[0]).Run()
			}
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "sh", "-eu")
	shell.Stdin = strings.NewReader(script)
	out, err := shell.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the document's commands failed: %v", err)
	}
	if !strings.Contains(string(out), string(volumeID)) || !strings.Contains(string(out), "letter.txt") {
		t.Error("the output names neither the volume nor its files")
	}
}

// check compares the files that the reader sees; it runs between mount and
// umount, as a part of the script.
func (h host) check(t *testing.T) string {
	t.Helper()
	want := t.TempDir()
	var script strings.Builder
	for name, data := range h.content {
		must(t, os.WriteFile(filepath.Join(want, name), data, 0o600))
		script.WriteString("cmp " + filepath.Join(want, name) + " /mnt/holdfast-volume/" + name + "\n")
	}
	return script.String()
}

var filesystems = map[string][]string{
	"xfs":  {"mkfs.xfs", "-q", "-K"},
	"ext4": {"mkfs.ext4", "-q"},
}

func TestRecoverFromAnImageFilePool(t *testing.T) {
	doc := commands(t)
	for name, mkfs := range filesystems {
		t.Run(name, func(t *testing.T) {
			h := makeReplica(t, mkfs)
			for _, way := range []string{"mount", "mount-readonly"} {
				follow(t, h, "IMAGE="+h.image+"\n"+doc["image"]+doc["list"]+"REPLICA=$POOL/replicas/"+string(uid)+"\n"+
					doc[way]+h.check(t)+doc["umount"]+doc["image-umount"])
			}
			h.reopen(t)
		})
	}
}

func TestRecoverFromADirectoryPool(t *testing.T) {
	doc := commands(t)
	h := makeReplica(t, filesystems["xfs"])
	// The directory's file system is mounted by the host; Holdfast has no part in it.
	run(t, "mount", "-o", "loop", h.image, h.poolDir)
	follow(t, h, "POOL="+h.poolDir+"\n"+doc["list"]+"REPLICA=$POOL/replicas/"+string(uid)+"\n"+doc["mount"]+h.check(t)+doc["umount"])
	run(t, "umount", h.poolDir)
	h.reopen(t)
}

// reopen shows that the pool and the replica are as they were.
func (h host) reopen(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	im, err := pool.OpenImage(ctx, pool.ImageOptions{Path: h.image, MountPoint: h.poolDir, SizeBytes: 768 << 20, Logger: pooltest.Logger(t)})
	must(t, err)
	p, err := pool.Open(ctx, pool.Options{Name: "p", Path: h.poolDir, Logger: pooltest.Logger(t)})
	must(t, err)
	s, err := replica.NewServer(replica.Options{Pools: replica.Pools(p), Logger: pooltest.Logger(t)})
	must(t, err)
	if i, err := s.Get(uid); err != nil || i.Failure != "" || i.Epoch != 4 {
		t.Errorf("after the recovery: %+v (%v)", i, err)
	}
	must(t, s.Close())
	must(t, p.Close())
	must(t, im.Close(ctx))
}

// TestEveryBlockIsRun: a block that is added to the document is added here.
func TestEveryBlockIsRun(t *testing.T) {
	doc := commands(t)
	for _, name := range []string{"image", "list", "mount", "mount-readonly", "umount", "image-umount"} {
		if doc[name] == "" {
			t.Errorf("block %q is gone", name)
		}
		delete(doc, name)
	}
	for name := range doc {
		t.Errorf("block %q is run by no test", name)
	}
}
