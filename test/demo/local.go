package main

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

// localRun is the main job on a volume with a single local replica, which the
// kernel alone serves.
type localRun struct {
	*demo
	data    *filesystem
	v       kubelet.Volume
	node    *kubelet.Node
	path    string
	ring    workload.WriterOptions
	writer  *workload.Writer
	written workload.Progress
}

func (d *demo) local(ctx context.Context) error {
	d.chapter("A volume with a single local replica")
	l := &localRun{demo: d, data: &filesystem{seed: 3}}
	for _, s := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"CreateVolume: 1 GiB, replicas 1, locality strict", l.create},
		{"NodeStage on a node without the replica is refused", l.refusedElsewhere},
		{"NodeStage and NodePublish; write data", l.attach},
		{"kill -9 the node's process while writing goes on: the kernel needs none", l.killNode},
		{"start the node again; grow 1 -> 2 GiB while writing goes on", l.grow},
		{"NodeUnpublish and NodeUnstage; stage again and verify everything", l.again},
	} {
		if err := d.timed(ctx, s.title, s.do); err != nil {
			return err
		}
	}
	return nil
}

func (l *localRun) create(ctx context.Context) (err error) {
	s := l.data.spec()
	s.Name, s.SizeBytes = "local", sizeAtFirst
	s.Params = map[string]string{"replicas": "1", "locality": "strict"}
	if l.v, err = l.demo.create(ctx, s); err != nil {
		return err
	}
	if len(l.v.Nodes) != 1 {
		return fmt.Errorf("it is accessible from %v, not from one node", l.v.Nodes)
	}
	l.say("accessible from %s alone", l.v.Nodes[0])
	l.node = l.cluster.Node(l.v.Nodes[0])
	return nil
}

func (l *localRun) refusedElsewhere(ctx context.Context) error {
	for _, n := range l.cluster.Nodes() {
		if n.Name == l.node.Name {
			continue
		}
		err := n.Stage(ctx, l.v)
		if kubelet.Code(err) != codes.FailedPrecondition {
			return fmt.Errorf("expected FAILED_PRECONDITION, got: %w", err)
		}
		l.say("%v", err)
		return nil
	}
	return nil
}

func (l *localRun) attach(ctx context.Context) (err error) {
	if l.path, err = l.node.Attach(ctx, l.v); err != nil {
		return err
	}
	text, err := l.data.fill(ctx, l.path)
	if err != nil {
		return err
	}
	l.say("at %s\n%s", l.path, text)
	l.ring = l.data.writer(l.path)
	if l.writer, err = workload.StartWriter(l.ring); err != nil {
		return err
	}
	l.undo = append(l.undo, func() { l.writer.Stop() })
	return nil
}

// wrote waits until the writer has flushed some more.
func (l *localRun) wrote(ctx context.Context) error {
	m := mirroredRun{demo: l.demo, writer: l.writer}
	return m.wrote(ctx)
}

func (l *localRun) killNode(ctx context.Context) error {
	if err := l.cluster.Do(ctx, "kill", l.node.Name); err != nil {
		return err
	}
	return l.wrote(ctx)
}

func (l *localRun) grow(ctx context.Context) error {
	if err := l.cluster.Do(ctx, "start", l.node.Name); err != nil {
		return err
	}
	// kubelet stages again what it finds in use after a plugin's restart.
	if _, err := l.node.Attach(ctx, l.v); err != nil {
		return err
	}
	return l.growOn(ctx, l.node, l.v, l.data, l.wrote)
}

func (l *localRun) again(ctx context.Context) error {
	l.written = l.writer.Stop()
	if l.written.Err != nil {
		return l.written.Err
	}
	if err := l.node.Detach(ctx, l.v); err != nil {
		return err
	}
	path, err := l.node.Attach(ctx, l.v)
	if err != nil {
		return err
	}
	text, err := l.data.verify(ctx, path)
	if err != nil {
		return err
	}
	if err := l.ring.Verify(l.data.writer(path).Path, l.written); err != nil {
		return err
	}
	l.say("%s; so is every one of the writer's %d records", strings.TrimSuffix(text, "."), l.written.Synced)
	return l.node.Detach(ctx, l.v)
}
