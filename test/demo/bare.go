package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

const undoTimeout = 10 * time.Second

// bareImage reads a volume's files from the plain image of one replica, with the
// tools of any Linux and nothing of Holdfast.
func (d *demo) bareImage(ctx context.Context, v kubelet.Volume, data *filesystem) error {
	d.chapter("A replica is a plain disk image")
	return d.timed(ctx, "losetup and mount of a bare replica, without Holdfast; verify everything", func(ctx context.Context) (err error) {
		o, err := d.cluster.Volume(ctx, v)
		if err != nil {
			return err
		}
		image := d.cluster.Image(o, victim)
		device, err := d.command(ctx, "losetup", "--find", "--show", "--read-only", image)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.afterwards(ctx, "losetup", "--detach", device)) }()
		at := filepath.Join(d.opt.Dir, "bare")
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if _, err := d.command(ctx, "mount", "-o", "ro,nouuid", device, at); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.afterwards(ctx, "umount", at)) }()
		text, err := data.verify(ctx, at)
		d.say("%s", text)
		return err
	})
}

// command runs a command, and shows it.
func (d *demo) command(ctx context.Context, name string, args ...string) (string, error) {
	d.say("# %s %s", name, strings.Join(args, " "))
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, text)
	}
	if text != "" {
		d.say("%s", text)
	}
	return text, nil
}

// afterwards runs a command also when the demo was interrupted.
func (d *demo) afterwards(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, err := d.command(ctx, name, args...)
	return err
}
