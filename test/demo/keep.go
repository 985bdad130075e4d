package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/standalone"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// leaveMounted publishes the volume once more, for whoever wants to look.
func (d *demo) leaveMounted(ctx context.Context, v kubelet.Volume) error {
	d.chapter("Leave it running")
	return d.timed(ctx, "NodeStage and NodePublish on "+successor, func(ctx context.Context) error {
		path, err := d.cluster.Node(successor).Attach(ctx, v)
		d.say("at %s", path)
		return err
	})
}

// howToTalk says how to use and how to end what was left running.
func (d *demo) howToTalk() {
	dir, cmd := d.cluster.Dir(), d.cluster.Command()
	var sockets strings.Builder
	fmt.Fprintf(&sockets, "  unix://%s   (Identity, Controller)\n", standalone.Socket(dir, standalone.ControllerName))
	for _, n := range d.cluster.Nodes() {
		fmt.Fprintf(&sockets, "  unix://%s   (Identity, Node)\n", standalone.Socket(dir, n.Name))
	}
	var volumes strings.Builder
	for _, v := range d.volumes {
		fmt.Fprintf(&volumes, "  %-6s %s\n", v.Spec.Name, v.ID)
	}
	d.line(`
It is still running. CSI (gRPC) is spoken on:
%s
Its volumes ("files" is mounted at %s):
%s
Look at it, and break it:
  %[4]s status --dir %[5]s
  %[4]s kill n3 --dir %[5]s
  %[4]s start n3 --dir %[5]s
Logs: %[5]s/*/log

Stop it, and remove everything:
  kill %[6]d; tail --pid=%[6]d -f /dev/null; rm -rf %[7]s`,
		strings.TrimRight(sockets.String(), "\n"), d.cluster.Node(successor).TargetPath(d.volumes[0]), volumes.String(),
		cmd, dir, d.cluster.PID(), d.opt.Dir)
}
