package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/agent/service"
	"github.com/holdfast-csi/holdfast/pkg/attach"
	"github.com/holdfast-csi/holdfast/pkg/csi"
	csinode "github.com/holdfast-csi/holdfast/pkg/csi/node"
	"github.com/holdfast-csi/holdfast/pkg/export"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/nbd"
	"github.com/holdfast-csi/holdfast/pkg/node"
	"github.com/holdfast-csi/holdfast/pkg/pace"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/replica"
	"github.com/holdfast-csi/holdfast/pkg/store"
	"github.com/holdfast-csi/holdfast/pkg/store/etcd"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// stopTimeout bounds the orderly end.
const stopTimeout = 30 * time.Second

// plugin is the running node, in the order in which it is built and undone.
type plugin struct {
	o   *Options
	log *slog.Logger

	images   []*pool.Image
	pools    []*pool.Pool
	replicas *replica.Server
	store    store.Store
	agents   *agent.Clients
	live     *store.Liveness
	self     *node.Registration
	attached *attach.Manager
}

// serve runs the node until ctx ends, then undoes what it made: volumes that
// nobody uses any more are released, pools are closed.
func serve(ctx context.Context, o *Options, log *slog.Logger) (err error) {
	p := &plugin{o: o, log: log}
	defer func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, p.close(sctx))
	}()
	if err := p.openPools(ctx); err != nil {
		return err
	}
	if err := p.wire(ctx); err != nil {
		return err
	}
	return p.run(ctx)
}

func (p *plugin) openPools(ctx context.Context) error {
	for _, f := range p.o.Pools {
		if f.image != "" {
			im, err := pool.OpenImage(ctx, pool.ImageOptions{Path: f.image, MountPoint: f.mount, SizeBytes: f.size, Logger: p.log})
			if err != nil {
				return fmt.Errorf("pool %s: %w", f.name, err)
			}
			p.images = append(p.images, im)
		}
		opened, err := pool.Open(ctx, pool.Options{Name: f.name, Path: f.path(), ReserveBytes: f.reserve, OverProvision: f.overProvision, Logger: p.log})
		if err != nil {
			return fmt.Errorf("pool %s: %w", f.name, err)
		}
		p.pools = append(p.pools, opened)
	}
	return nil
}

func (p *plugin) wire(ctx context.Context) error {
	id := volume.NodeID(p.o.NodeID)
	var err error
	p.replicas, err = replica.NewServer(replica.Options{Pools: replica.Pools(p.pools...), Logger: p.log, LoopAttached: func(path string) (bool, error) {
		_, attached, err := export.LoopAttached(path)
		return attached, err
	}})
	if err != nil {
		return err
	}
	if p.store, err = etcd.Connect(ctx, etcd.Options{Endpoints: strings.Split(p.o.Store, ","), Logger: p.log}); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	p.agents = agent.NewClients()
	p.live = store.NewLiveness(p.store.Nodes(), p.log)
	topology := map[string]string{volume.TopologyHost: p.o.NodeID}
	for k, v := range p.o.Topology {
		topology[k] = v
	}
	p.self, err = node.New(node.Options{
		Identity: volume.Node{
			ID: id, AgentAddr: p.o.AgentAddr, ReplicaAddr: p.o.ReplicaAddr,
			Topology: topology, MaxVolumes: p.o.MaxVolumes, Lease: p.o.Lease,
		},
		Nodes: p.store.Nodes(), Pools: p.reports, Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.attached = attach.New(attach.Options{
		Node: id, StateDir: p.o.StateDir, Store: p.store, Liveness: p.live, Logger: p.log, LegTimeout: p.o.LegTimeout, RejoinTimeout: p.o.RejoinTimeout,
		Replicas: &attach.Replicas{Node: id, Local: p.replicas, Agents: p.agents, Addresses: p.store.Nodes().Get},
		Local:    p.replicas, Self: p.self.Self, Choose: p.probe(ctx).For, Keep: p.replicas.Keep,
		RepairDelay: p.o.RepairDelay, HolderGrace: p.o.HolderGrace,
		Pace: pace.New(pace.Options{Volumes: p.o.ResyncVolumes, BytesPerSecond: p.o.resyncLimit}),
	})
	return nil
}

// probe finds out how volumes can be exported here, and says so.
func (p *plugin) probe(ctx context.Context) export.Report {
	r := export.Probe(ctx)
	for _, c := range r.Choices {
		if c.Kind == "" {
			p.log.Error("volumes can't be exported", "volumes", c.Volumes, "reason", c.Why)
			continue
		}
		p.log.Info("export chosen", "volumes", c.Volumes, "export", c.Kind, "reason", c.Why)
	}
	return r
}

func (p *plugin) reports() []volume.Pool {
	out := make([]volume.Pool, 0, len(p.pools))
	for _, pl := range p.pools {
		out = append(out, pl.Report())
	}
	return out
}

// run serves until ctx ends or a part fails.
func (p *plugin) run(ctx context.Context) error {
	agentListener, err := net.Listen("tcp", p.o.AgentListen)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	replicaListener, err := net.Listen("tcp", p.o.ReplicaListen)
	if err != nil {
		return errors.Join(fmt.Errorf("replica server: %w", err), agentListener.Close())
	}
	csiServer, err := p.csiServer(ctx)
	if err != nil {
		return errors.Join(err, agentListener.Close(), replicaListener.Close())
	}
	// The replica server and the agent outlive the CSI service and the volumes
	// attached here, whose local replicas are served in this process.
	g, gctx := errgroup.WithContext(ctx)
	agents := service.New(p.replicas, p.log)
	agents.Operator = &service.Operator{Replicas: p.replicas, Serving: p.attached.Serving}
	g.Go(func() error { return service.Serve(gctx, agentListener, agents) })
	g.Go(func() error {
		return nbd.NewServer(nbd.ServerOptions{Backend: p.replicas.NBD(), Logger: p.log}).Serve(gctx, replicaListener)
	})
	g.Go(func() error { return p.live.Run(gctx) })
	g.Go(func() error { return p.self.Run(gctx) })
	g.Go(func() error { return p.attached.Run(gctx) })
	g.Go(func() error { return csiServer.Serve(gctx) })
	p.log.Info("node plugin is up", "agent", p.o.AgentListen, "replicaServer", p.o.ReplicaListen, "pools", len(p.pools))
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (p *plugin) csiServer(ctx context.Context) (*csi.Server, error) {
	if err := os.MkdirAll(filepath.Dir(p.o.CSISocket), 0o750); err != nil {
		return nil, fmt.Errorf("csi socket: %w", err)
	}
	h, err := host.New(host.Options{Logger: p.log, ScratchDir: filepath.Join(p.o.StateDir, "scratch")})
	if err != nil {
		return nil, err
	}
	n, err := csinode.New(ctx, csinode.Options{
		Attacher: p.attached, Host: h, StateDir: filepath.Join(p.o.StateDir, "csi"), KubeletDir: p.o.KubeletDir, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	return csi.NewServer(csi.ServerOptions{
		Socket: p.o.CSISocket, Identity: csi.NewIdentity(p.attached.Ready), Node: n, Logger: p.log,
	})
}

// close undoes what was made, in reverse.
func (p *plugin) close(ctx context.Context) error {
	var errs []error
	if p.attached != nil {
		err := p.attached.Shutdown(ctx)
		errs = append(errs, err)
		if err == nil { // nothing is served any more: nobody has to wait for the lease
			errs = append(errs, p.self.Leave(ctx))
		}
	}
	if p.agents != nil {
		errs = append(errs, p.agents.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if p.replicas != nil {
		errs = append(errs, p.replicas.Close())
	}
	for _, pl := range p.pools {
		errs = append(errs, pl.Close())
	}
	for _, im := range p.images {
		errs = append(errs, im.Close(ctx))
	}
	return errors.Join(errs...)
}
