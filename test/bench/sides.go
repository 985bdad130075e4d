package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// prepare starts a Holdfast and makes all sides, filled.
func (b *bench) prepare(ctx context.Context) (err error) {
	b.say("starting a three-node Holdfast in %s", b.opt.Dir)
	// Every side has a file of its own; the volumes also on the other nodes.
	room := fmt.Sprintf("%dMi", 8*(b.opt.SizeBytes>>20)+4096)
	b.cluster, err = kubelet.Start(ctx, kubelet.Options{Bin: b.opt.Bin, Dir: filepath.Join(b.opt.Dir, "standalone"), PoolSize: room})
	if err != nil {
		return err
	}
	b.undo = append(b.undo, b.cluster.Stop)
	b.report.Machine = describeMachine(b.cluster.Dir())
	picked, err := selectSides(b.opt.Sides)
	if err != nil {
		return err
	}
	if err := b.addFiles(ctx, picked); err != nil {
		return err
	}
	if err := b.addVolumes(ctx, picked); err != nil {
		return err
	}
	for _, s := range b.sides {
		b.say("filling: %s (%s)", sideTitles[s.name], s.path)
		if err := fill(ctx, s.path, b.opt.SizeBytes); err != nil {
			return err
		}
	}
	return nil
}

// addFiles makes the sides without Holdfast.
func (b *bench) addFiles(ctx context.Context, picked map[string]bool) error {
	dir := filepath.Join(b.cluster.Dir(), node, "pool")
	for _, f := range []struct{ side, direct string }{{sideRaw, ""}, {sideLoop, "on"}, {sideLoopCache, "off"}} {
		if !picked[f.side] {
			continue
		}
		if err := b.addFile(ctx, f.side, filepath.Join(dir, "bench-"+f.side+".img"), f.direct); err != nil {
			return fmt.Errorf("%s: %w", sideTitles[f.side], err)
		}
	}
	return nil
}

// addVolumes makes the sides that are volumes.
func (b *bench) addVolumes(ctx context.Context, picked map[string]bool) error {
	for _, v := range []struct {
		side   string
		params map[string]string
	}{
		{sideOne, map[string]string{"replicas": "1", "locality": "strict"}},
		{sideThree, map[string]string{"replicas": "3", "cacheMode": "writeback"}},
		{sideThreeNone, map[string]string{"replicas": "3", "cacheMode": "none"}},
	} {
		if !picked[v.side] {
			continue
		}
		path, err := b.addVolume(ctx, kubelet.Spec{Name: v.side, SizeBytes: b.opt.SizeBytes, Params: v.params, Block: true, On: node})
		if err != nil {
			return fmt.Errorf("%s: %w", sideTitles[v.side], err)
		}
		b.sides = append(b.sides, side{v.side, path})
	}
	return nil
}

// addFile makes a file beside the replicas, and a loop device on it with direct
// I/O "on" or "off", unless direct is "".
func (b *bench) addFile(ctx context.Context, name, path, direct string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b.undo = append(b.undo, func(context.Context) error { return os.Remove(path) })
	if err := f.Truncate(b.opt.SizeBytes); err != nil {
		return err
	}
	if direct == "" {
		b.sides = append(b.sides, side{name, path})
		return nil
	}
	device, err := losetup(ctx, "--find", "--show", "--sector-size=4096", "--direct-io="+direct, path)
	if err != nil {
		return err
	}
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := losetup(ctx, "--detach", device)
		return err
	})
	b.sides = append(b.sides, side{name, device})
	return nil
}

func losetup(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "losetup", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("losetup %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// addVolume creates a volume and brings it to a pod's path on the node.
func (b *bench) addVolume(ctx context.Context, spec kubelet.Spec) (string, error) {
	v, err := b.cluster.Controller().Create(ctx, spec)
	if err != nil {
		return "", err
	}
	b.undo = append(b.undo, func(ctx context.Context) error { return b.cluster.Controller().Delete(ctx, v) })
	path, err := b.cluster.Node(node).Attach(ctx, v)
	if err != nil {
		return "", err
	}
	b.undo = append(b.undo, func(ctx context.Context) error { return b.cluster.Node(node).Detach(ctx, v) })
	b.volumes = append(b.volumes, v)
	return path, nil
}
