package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/admin"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// verbs are all that the command can do.
func verbs() []verb {
	return []verb{
		{name: "status", help: "all volumes and nodes in a table", run: status},
		{name: "describe", args: []string{"VOLUME"}, help: "one volume with replicas and conditions", run: describe},
		{name: "resync", args: []string{"[VOLUME]"}, help: "what is being copied, with progress; --watch until all is in sync",
			flags: func(o *Options, fs *flag.FlagSet) {
				fs.BoolVar(&o.Watch, "watch", false, "show it again and again, with rate and estimate, until all replicas are in sync")
				fs.DurationVar(&o.Interval, "interval", time.Second, "between two looks of --watch")
			}, run: resync},
		{name: "replicas", args: []string{"VOLUME", "NUMBER"}, help: "have so many replicas; they come and go in the background", run: replicas},
		{name: "evict", args: []string{"NODE"}, help: "have all replicas leave a node; --cancel undoes it",
			flags: func(o *Options, fs *flag.FlagSet) {
				fs.BoolVar(&o.Cancel, "cancel", false, "let the node have replicas again")
			}, run: evict},
		{name: "promote", args: []string{"VOLUME", "NODE"}, help: "say what declaring a replica that is behind the volume's content would lose; --accept-data-loss does it",
			flags: func(o *Options, fs *flag.FlagSet) {
				fs.BoolVar(&o.AcceptDataLoss, "accept-data-loss", false, "do it; what was written since the replica fell behind is lost")
			}, run: promote},
		{name: "rebuild-store", help: "make the volumes' objects from what the replicas know, after the store was lost or set back",
			flags: func(o *Options, fs *flag.FlagSet) {
				fs.BoolVar(&o.Force, "force", false, "also if the store has volumes, or nodes don't answer")
				fs.BoolVar(&o.DryRun, "dry-run", false, "say only what would be done")
			}, run: rebuildStore},
	}
}

func (c *call) printJSON(what any) error {
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(what)
}

func (c *call) table(header string) *tabwriter.Writer {
	w := tabwriter.NewWriter(c.out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, header)
	return w
}

func status(ctx context.Context, c *call) error {
	r, err := c.admin.Status(ctx)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return c.printJSON(r)
	}
	w := c.table("VOLUME\tNAME\tSIZE\tHEALTH\tHOLDER\tEPOCH\tREPLICAS")
	for i := range r.Volumes {
		v := &r.Volumes[i]
		var reps []string
		for _, m := range v.Replicas {
			reps = append(reps, short(&m))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.ID, v.Name, size(v.SizeBytes), v.Health, holder(v.Holder), v.Epoch, strings.Join(reps, " "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	w = c.table("NODE\tANSWERS\tSTATE\tREPLICAS\tHOLDS\tPOOLS (FREE OF CAPACITY)")
	for _, n := range r.Nodes {
		var pools []string
		for _, p := range n.Pools {
			pools = append(pools, fmt.Sprintf("%s=%s/%s", p.Name, size(p.Free), size(p.Capacity)))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", n.ID, yesNo(n.Answers), nodeState(&n), n.Replicas, n.Serving, strings.Join(pools, " "))
	}
	return w.Flush()
}

func nodeState(n *admin.NodeReport) string {
	switch {
	case n.Leaving:
		return "left"
	case n.Evicting:
		return "evicting"
	}
	return "-"
}

func yesNo[B ~bool](is B) string { return map[B]string{true: "yes", false: "no"}[is] }

// short is a replica in one word: "n2=Rebuilding:41%".
func short(m *admin.ReplicaReport) string {
	s := fmt.Sprintf("%s=%s", m.Node, m.State)
	if m.State == "" {
		s = fmt.Sprintf("%s=making", m.Node)
	}
	if m.Resync != nil {
		s += fmt.Sprintf(":%d%%", m.Resync.Percent())
	}
	if !m.Wanted {
		s += "(leaving)"
	}
	return s
}

func holder(h *volume.Holder) string {
	switch {
	case h == nil:
		return "-"
	case h.Repair:
		return string(h.Node) + " (repair)"
	}
	return string(h.Node)
}

// size prints bytes for people.
func size(n int64) string {
	unit := 0
	f := float64(n)
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	return strings.Replace(fmt.Sprintf("%.1f%s", f, [...]string{"B", "Ki", "Mi", "Gi", "Ti"}[unit]), ".0", "", 1)
}

func describe(ctx context.Context, c *call) error {
	v, err := c.admin.Describe(ctx, c.args[0])
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return c.printJSON(v)
	}
	writeVolume(c.out, &v)
	w := c.table("\nREPLICA ON\tPOOL\tSTATE\tSINCE\tRESYNC\tWHY")
	for _, m := range v.Replicas {
		progress := "-"
		if m.Resync != nil {
			progress = fmt.Sprintf("%d%% of %s", m.Resync.Percent(), size(m.Resync.TotalBytes))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Node, m.Pool, replicaState(&m), stamp(m.Since), progress, m.Reason)
	}
	for _, r := range v.Retired {
		fmt.Fprintf(w, "%s\t%s\tretired\t-\t-\tit is removed when its node answers\n", r.Node, r.Pool)
	}
	if err := w.Flush(); err != nil || len(v.Conditions) == 0 {
		return err
	}
	w = c.table("\nCONDITION\tSINCE\tREASON\tMESSAGE")
	for _, cond := range v.Conditions {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", cond.Type, stamp(cond.Since), cond.Reason, cond.Message)
	}
	return w.Flush()
}

func writeVolume(out io.Writer, v *admin.VolumeReport) {
	wanted := ""
	if v.WantedBytes != v.SizeBytes {
		wanted = ", to be " + size(v.WantedBytes)
	}
	use := "raw block or not yet formatted"
	if v.Format.FSType != "" {
		use = v.Format.FSType
	}
	fmt.Fprintf(out, "%s  %s\nhealth:    %s (%s)\nsize:      %s%s\nreplicas:  %d wanted, locality %s\nepoch:     %d, holder %s, clean %s\nformat:    %s\nuid:       %s\n",
		v.ID, v.Name, v.Health, v.Phase, size(v.SizeBytes), wanted, v.WantedReplicas, v.Params.Locality, v.Epoch, holder(v.Holder), yesNo(v.Clean), use, v.UID)
}

func replicaState(m *admin.ReplicaReport) string {
	switch {
	case m.State == "":
		return "making"
	case !m.Wanted:
		return string(m.State) + ", leaving"
	}
	return string(m.State)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
