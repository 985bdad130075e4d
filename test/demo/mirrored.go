package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
	"github.com/holdfast-csi/holdfast/test/workload"
)

const (
	sizeAtFirst = 1 << 30
	sizeGrown   = 2 << 30
	user        = "n1" // uses the volume first
	victim      = "n3" // is killed
	successor   = "n2" // uses the volume then
)

// mirroredRun is the main job on one volume with three replicas.
type mirroredRun struct {
	*demo
	name    string
	data    content
	v       kubelet.Volume
	path    string // where the pod has it
	ring    workload.WriterOptions
	writer  *workload.Writer
	written workload.Progress
}

// mirrored creates a volume, uses it while a node dies and returns and while it
// grows, and moves it to another node. It leaves it unstaged.
func (d *demo) mirrored(ctx context.Context, name string, data content) (kubelet.Volume, error) {
	m := &mirroredRun{demo: d, name: name, data: data}
	kind := "xfs"
	if data.spec().Block {
		kind = "raw block"
	}
	d.chapter(fmt.Sprintf("A volume with 3 replicas, %s", kind))
	for _, s := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"CreateVolume: 1 GiB, 3 replicas", m.create},
		{"NodeStage and NodePublish on " + user, m.attach},
		{"write data", m.fill},
		{"kill -9 the process of " + victim + " while writing goes on", m.killNode},
		{"the replica on " + victim + " is Outdated, the volume degraded; writing goes on", m.showDegraded},
		{"start " + victim + " again; its replica is rebuilt while writing goes on", m.rebuild},
		{"ControllerExpand and NodeExpand: 1 -> 2 GiB while writing goes on", m.grow},
		{"NodeUnpublish and NodeUnstage on " + user, m.detach},
		{"NodeStage and NodePublish on " + successor + "; verify everything", m.moved},
		{"NodeUnpublish and NodeUnstage on " + successor, m.detachAgain},
	} {
		if err := d.timed(ctx, s.title, s.do); err != nil {
			return m.v, err
		}
	}
	return m.v, nil
}

func (m *mirroredRun) create(ctx context.Context) (err error) {
	s := m.data.spec()
	s.Name, s.SizeBytes, s.Params = m.name, sizeAtFirst, map[string]string{"replicas": "3"}
	m.v, err = m.demo.create(ctx, s)
	return err
}

func (m *mirroredRun) attach(ctx context.Context) (err error) {
	m.path, err = m.cluster.Node(user).Attach(ctx, m.v)
	if err != nil {
		return err
	}
	_, text, err := m.data.size(ctx, m.cluster.Node(user), m.v)
	m.say("at %s\n%s", m.path, text)
	return err
}

func (m *mirroredRun) fill(ctx context.Context) error {
	text, err := m.data.fill(ctx, m.path)
	if err != nil {
		return err
	}
	m.say("%s", text)
	m.ring = m.data.writer(m.path)
	m.writer, err = workload.StartWriter(m.ring)
	if err != nil {
		return err
	}
	m.undo = append(m.undo, func() { m.writer.Stop() })
	m.say("a writer goes on: 4 KiB records, a flush after every %d", syncEvery)
	return nil
}

// wrote waits until the writer has flushed some more, and shows its lap.
func (m *mirroredRun) wrote(ctx context.Context) error {
	goal := m.writer.Progress().Synced + 4*syncEvery
	err := kubelet.Await(ctx, "the writer to go on", func(context.Context) error {
		p := m.writer.Progress()
		if p.Err == nil && p.Synced < goal {
			return fmt.Errorf("%d records flushed", p.Synced)
		}
		return nil
	})
	p := m.writer.Lap()
	if err == nil {
		err = p.Err
	}
	m.say("the writer has flushed %d records, no error; its longest wait was %.2f s", p.Synced, p.Slowest.Seconds())
	return err
}

func (m *mirroredRun) killNode(ctx context.Context) error {
	if err := m.wrote(ctx); err != nil {
		return err
	}
	return m.cluster.Do(ctx, "kill", victim)
}

// replica is the store's word on the victim's replica.
func (m *mirroredRun) replica(ctx context.Context) (volume.Replica, error) {
	o, err := m.cluster.Volume(ctx, m.v)
	if err != nil {
		return volume.Replica{}, err
	}
	i := o.ReplicaOn(victim)
	if i < 0 {
		return volume.Replica{}, fmt.Errorf("there is no replica on %s", victim)
	}
	return o.Status.Replicas[i], nil
}

func (m *mirroredRun) showDegraded(ctx context.Context) error {
	err := kubelet.Await(ctx, "the replica to be Outdated", func(ctx context.Context) error {
		r, err := m.replica(ctx)
		if err == nil && r.State != volume.Outdated {
			err = fmt.Errorf("it is %s", r.State)
		}
		return err
	})
	if err != nil {
		return err
	}
	health, err := m.cluster.Controller().Health(ctx, m.v)
	if err != nil {
		return err
	}
	degraded := false
	for _, h := range health {
		m.say("ControllerGetVolumeHealth: %s, %s: %s", h.GetStatus(), h.GetReason(), h.GetMessage())
		degraded = degraded || h.GetStatus() == csipb.VolumeHealthErrorType_DEGRADED && strings.Contains(h.GetMessage(), victim)
	}
	if !degraded {
		return fmt.Errorf("the health doesn't say that the volume is degraded because of %s", victim)
	}
	got, err := m.cluster.Controller().Get(ctx, m.v)
	if err != nil {
		return err
	}
	m.say("ControllerGetVolume: %s, in use on %s", gib(got.GetVolume().GetCapacityBytes()), strings.Join(got.GetStatus().GetPublishedNodeIds(), ", "))
	if err := m.showStatus(ctx, victim+"="+string(volume.Outdated)); err != nil {
		return err
	}
	text, err := m.data.more(ctx, m.path)
	if err != nil {
		return err
	}
	m.say("written meanwhile, which %s misses: %s", victim, text)
	return m.wrote(ctx)
}

// showStatus shows the volume's line of the status command, which must say want.
func (m *mirroredRun) showStatus(ctx context.Context, want string) error {
	text, err := m.cluster.Status(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, m.v.ID) {
			m.say("holdfast-standalone status: %s", line)
			if !strings.Contains(line, want) {
				return fmt.Errorf("the status doesn't say %s", want)
			}
			return nil
		}
	}
	return errors.New("the status doesn't show the volume")
}

func (m *mirroredRun) rebuild(ctx context.Context) error {
	if err := m.cluster.Do(ctx, "start", victim); err != nil {
		return err
	}
	if err := m.showResync(ctx); err != nil {
		return err
	}
	r, err := m.replica(ctx)
	if err != nil {
		return err
	}
	m.say("%s is %s; its process has taken in %s", victim, r.State, mib(m.received(ctx)))
	if r.State != volume.InSync {
		return fmt.Errorf("it is %s (%s)", r.State, r.Reason)
	}
	health, err := m.cluster.Controller().Health(ctx, m.v)
	if err == nil && len(health) > 0 {
		err = fmt.Errorf("the health still says %v", health)
	}
	if err != nil {
		return err
	}
	m.say("ControllerGetVolumeHealth: nothing is wrong")
	return m.wrote(ctx)
}

// showResync shows what an administrator would look at, until all is in sync.
func (m *mirroredRun) showResync(ctx context.Context) error {
	args := []string{"resync", "--watch", "--interval", "250ms", "--dir", m.cluster.Dir(), m.v.ID}
	m.say("# kubectl-holdfast %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(m.opt.Bin, "kubectl-holdfast"), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		return err
	}
	shown := map[string]bool{} // what is repeated, such as the volume's name, is shown once
	for s := bufio.NewScanner(out); s.Scan(); {
		if !shown[s.Text()] {
			m.say("%s", s.Text())
		}
		shown[s.Text()] = true
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("kubectl-holdfast: %w: %s", err, complaints.String())
	}
	return nil
}

// received is how many bytes the victim's process has read since it started,
// over the network for the most part; 0 if that can't be told.
func (m *mirroredRun) received(ctx context.Context) int64 {
	procs, err := m.cluster.Processes(ctx)
	if err != nil {
		return 0
	}
	for _, p := range procs {
		if p.Name != victim {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.PID))
		var n int64
		if _, scanErr := fmt.Sscanf(string(b), "rchar: %d", &n); err == nil && scanErr == nil {
			return n
		}
	}
	return 0
}

func (m *mirroredRun) grow(ctx context.Context) error {
	return m.growOn(ctx, m.cluster.Node(user), m.v, m.data, m.wrote)
}

// growOn makes a published volume larger and looks what the pod sees of it.
func (d *demo) growOn(ctx context.Context, n *kubelet.Node, v kubelet.Volume, data content, wrote func(context.Context) error) error {
	before, _, err := data.size(ctx, n, v)
	if err != nil {
		return err
	}
	resp, err := d.cluster.Controller().Expand(ctx, v, sizeGrown)
	if err != nil {
		return err
	}
	d.say("ControllerExpandVolume: %s", gib(resp.GetCapacityBytes()))
	if resp.GetNodeExpansionRequired() {
		size, err := n.Expand(ctx, v, sizeGrown)
		if err != nil {
			return err
		}
		d.say("NodeExpandVolume: %s", gib(size))
	}
	after, text, err := data.size(ctx, n, v)
	if err != nil {
		return err
	}
	d.say("%s", text)
	if after-before < (sizeGrown-sizeAtFirst)*9/10 {
		return fmt.Errorf("the pod saw %d bytes before and %d after", before, after)
	}
	return wrote(ctx)
}

func (m *mirroredRun) detach(ctx context.Context) error {
	m.written = m.writer.Stop()
	if m.written.Err != nil {
		return m.written.Err
	}
	m.say("the writer ended after %d records, all flushed, none failed", m.written.Synced)
	return m.cluster.Node(user).Detach(ctx, m.v)
}

func (m *mirroredRun) moved(ctx context.Context) error {
	path, err := m.cluster.Node(successor).Attach(ctx, m.v)
	if err != nil {
		return err
	}
	text, err := m.data.verify(ctx, path)
	if err != nil {
		return err
	}
	m.say("%s", text)
	if err := m.ring.Verify(m.data.writer(path).Path, m.written); err != nil {
		return err
	}
	m.say("the writer's records: every one is right")
	return m.showStatus(ctx, victim+"="+string(volume.InSync))
}

func (m *mirroredRun) detachAgain(ctx context.Context) error {
	return m.cluster.Node(successor).Detach(ctx, m.v)
}
