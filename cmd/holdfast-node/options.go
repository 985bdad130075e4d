package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Options are the command line.
type Options struct {
	NodeID        string
	Store         string
	CSISocket     string
	AgentListen   string
	ReplicaListen string
	AgentAddr     string
	ReplicaAddr   string
	StateDir      string
	KubeletDir    string
	Pools         poolFlags
	Topology      pairFlags
	Lease         time.Duration
	LegTimeout    time.Duration
	RejoinTimeout time.Duration
	RepairDelay   time.Duration
	HolderGrace   time.Duration
	ResyncVolumes int
	ResyncLimit   string
	MaxVolumes    int64
	LogLevel      string
	Probe         bool

	level       slog.Level
	resyncLimit int64 // bytes/s
}

// AddFlags binds the options to the command line.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	o.Topology = pairFlags{}
	fs.StringVar(&o.NodeID, "node-id", "", "this node's name, as Kubernetes knows it")
	fs.StringVar(&o.Store, "store", "", "etcd endpoints of the store, separated by commas")
	fs.StringVar(&o.CSISocket, "csi-socket", "", "path of the unix socket for CSI")
	fs.StringVar(&o.AgentListen, "agent-listen", "127.0.0.1:7701", "host:port of the agent (gRPC)")
	fs.StringVar(&o.ReplicaListen, "replica-listen", "127.0.0.1:7702", "host:port of the replica server (NBD)")
	fs.StringVar(&o.AgentAddr, "agent-address", "", "host:port under which others reach the agent; default: --agent-listen")
	fs.StringVar(&o.ReplicaAddr, "replica-address", "", "host:port under which others reach the replica server; default: --replica-listen")
	fs.StringVar(&o.StateDir, "state-dir", "/var/lib/holdfast", "directory for exports and stage records")
	fs.StringVar(&o.KubeletDir, "kubelet-dir", "", "directory in which staging and target paths must lie; default: anywhere")
	fs.Var(&o.Pools, "pool", "a pool: name=NAME,dir=DIR or name=NAME,image=FILE,size=SIZE,mount=DIR; optional reserve=SIZE, overprovision=FACTOR; repeatable")
	fs.Var(o.Topology, "topology", "a topology label KEY=VALUE of this node; repeatable")
	fs.DurationVar(&o.Lease, "lease", 10*time.Second, "the node counts as gone when it was not heard of for so long")
	fs.DurationVar(&o.RepairDelay, "repair-delay", 10*time.Second, "a volume that nobody uses is opened to be repaired when it has needed it for so long")
	fs.DurationVar(&o.HolderGrace, "holder-grace", 10*time.Minute, "so much longer if the store still names a holder, whose node is away")
	fs.IntVar(&o.ResyncVolumes, "resync-volumes", 2, "volumes of this node that are resynced at once; those with the fewest in-sync replicas go first")
	fs.StringVar(&o.ResyncLimit, "resync-limit", "0", "bytes per second, such as 100Mi, that all resyncs of this node together may copy, with a quarter of what they compare; 0: only as fast as applications bear")
	fs.DurationVar(&o.LegTimeout, "leg-timeout", 8*time.Second, "a replica that answers nothing for so long is given up")
	fs.DurationVar(&o.RejoinTimeout, "rejoin-timeout", 3*time.Second, "a replica whose connection broke may come back for so long before it is given up; writes wait meanwhile, and after 2 s reads; 0: give it up at once")
	fs.Int64Var(&o.MaxVolumes, "max-volumes", 128, "volumes that may be staged on this node")
	fs.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&o.Probe, "probe", false, "print what this host offers and which export is chosen, and exit")
}

// Validate reports all faults.
func (o *Options) Validate() error {
	var errs []error
	check := func(ok bool, field, value, allowed string) {
		if !ok {
			errs = append(errs, volume.Invalid(field, value, allowed))
		}
	}
	errs = append(errs, volume.NodeID(o.NodeID).Validate())
	check(o.Store != "", "--store", o.Store, "one or more etcd endpoints")
	check(filepath.IsAbs(o.CSISocket), "--csi-socket", o.CSISocket, "an absolute path")
	check(filepath.IsAbs(o.StateDir), "--state-dir", o.StateDir, "an absolute path")
	check(o.KubeletDir == "" || filepath.IsAbs(o.KubeletDir), "--kubelet-dir", o.KubeletDir, "an absolute path")
	if o.AgentAddr == "" {
		o.AgentAddr = o.AgentListen
	}
	if o.ReplicaAddr == "" {
		o.ReplicaAddr = o.ReplicaListen
	}
	for flagName, addr := range map[string]string{"--agent-listen": o.AgentListen, "--replica-listen": o.ReplicaListen, "--agent-address": o.AgentAddr, "--replica-address": o.ReplicaAddr} {
		_, port, err := net.SplitHostPort(addr)
		n, perr := strconv.Atoi(port)
		check(err == nil && perr == nil && n > 0 && n < 65536, flagName, addr, "host:port")
	}
	check(o.Lease >= time.Second, "--lease", o.Lease.String(), "at least 1s")
	check(o.RepairDelay > 0, "--repair-delay", o.RepairDelay.String(), "more than 0")
	check(o.HolderGrace > 0, "--holder-grace", o.HolderGrace.String(), "more than 0")
	check(o.ResyncVolumes > 0, "--resync-volumes", fmt.Sprint(o.ResyncVolumes), "at least 1")
	if o.ResyncLimit != "0" {
		var err error
		o.resyncLimit, err = volume.ParseBytes(o.ResyncLimit)
		check(err == nil && o.resyncLimit >= 1<<20, "--resync-limit", o.ResyncLimit, "0, or at least 1Mi")
	}
	check(o.RejoinTimeout >= 0 && o.RejoinTimeout <= time.Minute, "--rejoin-timeout", o.RejoinTimeout.String(), "0s to 1m")
	check(o.LegTimeout >= time.Second, "--leg-timeout", o.LegTimeout.String(), "at least 1s")
	check(o.MaxVolumes > 0, "--max-volumes", fmt.Sprint(o.MaxVolumes), "at least 1")
	if err := o.level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		check(false, "--log-level", o.LogLevel, "debug, info, warn or error")
	}
	return errors.Join(errs...)
}

// poolFlag is one --pool.
type poolFlag struct {
	name, dir     string
	image, mount  string
	size, reserve int64
	overProvision float64
}

type poolFlags []poolFlag

func (p *poolFlags) String() string { return fmt.Sprintf("%d pools", len(*p)) }

// Set parses one --pool.
func (p *poolFlags) Set(s string) error {
	var f poolFlag
	given := map[string]bool{}
	for _, part := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		if given[key] {
			return fmt.Errorf("%s= is given twice", key)
		}
		given[key] = true
		var err error
		switch key {
		case "name":
			f.name = value
		case "dir":
			f.dir = value
		case "image":
			f.image = value
		case "mount":
			f.mount = value
		case "size":
			f.size, err = volume.ParseBytes(value)
		case "reserve":
			f.reserve, err = volume.ParseBytes(value)
		case "overprovision":
			f.overProvision, err = strconv.ParseFloat(value, 64)
		default:
			err = fmt.Errorf("unknown key %q; known are name, dir, image, mount, size, reserve, overprovision", key)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	switch {
	case f.name == "":
		return errors.New("name= is missing")
	case (f.dir == "") == (f.image == ""):
		return errors.New("one of dir= and image= is needed")
	case f.image != "" && (f.size <= 0 || f.mount == ""):
		return errors.New("image= needs size= and mount=")
	case f.dir != "" && (given["size"] || given["mount"]):
		return errors.New("size= and mount= go with image=, not with dir=")
	}
	if err := f.validate(); err != nil {
		return err
	}
	*p = append(*p, f)
	return nil
}

// path is the pool's directory.
func (f *poolFlag) path() string { return cmp.Or(f.dir, f.mount) }

// validate asks the pool's own opinion.
func (f *poolFlag) validate() error {
	o := pool.Options{Name: f.name, Path: f.path(), ReserveBytes: f.reserve, OverProvision: f.overProvision}
	if err := o.Validate(); err != nil || f.image == "" {
		return err
	}
	im := pool.ImageOptions{Path: f.image, MountPoint: f.mount, SizeBytes: f.size}
	return im.Validate()
}

type pairFlags map[string]string

func (p pairFlags) String() string { return fmt.Sprintf("%d labels", len(p)) }

// Set parses one --topology.
func (p pairFlags) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" || value == "" {
		return fmt.Errorf("%q is not KEY=VALUE", s)
	}
	p[key] = value
	return nil
}
