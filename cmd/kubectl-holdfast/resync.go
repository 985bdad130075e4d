package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/admin"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

const barWidth = 30

// resync shows what is not in sync, once or until everything is.
func resync(ctx context.Context, c *call) error {
	seen := estimates{}
	for {
		left, err := c.unsettled(ctx)
		if err != nil {
			return err
		}
		if err := c.showResyncs(left, seen); err != nil || !c.Watch || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.Interval):
		}
	}
}

// unsettled are the volumes asked for that still have something to do.
func (c *call) unsettled(ctx context.Context) ([]admin.VolumeReport, error) {
	var all []admin.VolumeReport
	if len(c.args) > 0 {
		v, err := c.admin.Describe(ctx, c.args[0])
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	} else {
		r, err := c.admin.Status(ctx)
		if err != nil {
			return nil, err
		}
		all = r.Volumes
	}
	left := []admin.VolumeReport{}
	for _, v := range all {
		if v.Phase == volume.PhaseReady && v.Health != admin.Healthy {
			left = append(left, v)
		}
	}
	return left, nil
}

func (c *call) showResyncs(left []admin.VolumeReport, seen estimates) error {
	if c.Output == "json" {
		return c.printJSON(left)
	}
	if len(left) == 0 {
		_, err := fmt.Fprintln(c.out, "everything is in sync")
		return err
	}
	for i := range left {
		v := &left[i]
		fmt.Fprintf(c.out, "%s %s: %s\n", v.ID, v.Name, v.Health)
		for _, m := range v.Replicas {
			switch {
			case m.Resync != nil:
				rate := seen.add(string(v.ID)+" "+string(m.Node), point{time.Now(), m.Resync.DoneBytes})
				fmt.Fprintf(c.out, "  %-10s %s %3d%%  %s of %s%s\n", m.Node, bar(m.Resync.Percent()), m.Resync.Percent(),
					size(m.Resync.DoneBytes), size(m.Resync.TotalBytes), remaining(m.Resync.TotalBytes-m.Resync.DoneBytes, rate))
			case m.State != volume.InSync:
				fmt.Fprintf(c.out, "  %-10s %s: %s\n", m.Node, replicaState(&m), m.Reason)
			}
		}
	}
	return nil
}

func bar(percent int) string {
	n := percent * barWidth / 100
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", barWidth-n) + "]"
}
