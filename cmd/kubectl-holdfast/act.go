package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/admin"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func replicas(ctx context.Context, c *call) error {
	n, err := strconv.Atoi(c.args[1])
	if err != nil {
		return volume.Invalid("NUMBER", c.args[1], "a whole number")
	}
	v, err := c.admin.SetReplicas(ctx, c.args[0], n)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return describe(ctx, c)
	}
	_, err = fmt.Fprintf(c.out, "volume %s is to have %d replicas; \"resync --watch %s\" shows how far it is\n", v.ID, n, v.Spec.Name)
	return err
}

func evict(ctx context.Context, c *call) error {
	want := admin.EvictNode
	if c.Cancel {
		want = admin.CancelEviction
	}
	there, err := c.admin.Evict(ctx, volume.NodeID(c.args[0]), want)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return c.printJSON(map[string]any{"node": c.args[0], "evicting": !c.Cancel, "volumes": append([]volume.ID{}, there...)})
	}
	if c.Cancel {
		_, err = fmt.Fprintf(c.out, "node %s may have replicas again; those that have left already do not come back\n", c.args[0])
		return err
	}
	_, err = fmt.Fprintf(c.out, "node %s gets no new replicas, and %d volumes are to leave it, each when its new replica is in sync\n", c.args[0], len(there))
	return err
}

func promote(ctx context.Context, c *call) error {
	do := c.admin.Promotion
	if c.AcceptDataLoss {
		do = c.admin.Promote
	}
	p, err := do(ctx, c.args[0], volume.NodeID(c.args[1]))
	if err != nil {
		return err
	}
	if c.Output == "json" {
		err = c.printJSON(p)
	} else {
		_, err = fmt.Fprintln(c.out, p.Loss)
	}
	switch {
	case err != nil:
		return err
	case !p.Done:
		return fmt.Errorf("nothing was changed: say --accept-data-loss to do it")
	case c.Output != "json":
		_, err = fmt.Fprintf(c.out, "The replica on node %s is the content of volume %s now; all others are copied from it.\n", p.Node, p.Volume)
	}
	return err
}

func rebuildStore(ctx context.Context, c *call) error {
	all, err := c.admin.RebuildStore(ctx, admin.RebuildOptions{Force: c.Force, DryRun: c.DryRun})
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return c.printJSON(all)
	}
	w := c.table("VOLUME\tNAME\tUID\tEPOCH\tIN SYNC\tBEHIND\tDONE\tWHY NOT")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", r.Volume, r.Name, r.UID, r.Epoch, names(r.InSync), names(r.Behind), yesNo(r.Done), r.Why)
	}
	return w.Flush()
}

func names(nodes []volume.NodeID) string {
	var out []string
	for _, n := range nodes {
		out = append(out, string(n))
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ",")
}
