package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/csi"
	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// lose makes a formatted volume, not staged, whose data is gone, and returns
// what it held.
func lose(w *world) host.Content {
	w.t.Helper()
	w.must(w.stage(mountCap("")))
	w.must(w.unstage())
	kept := w.host.content[w.id]
	delete(w.host.content, w.id)
	return kept
}

// losses are the reasons for which the health calls report DATA_LOSS, as seen
// from this node and from the controller, which must be the same.
func losses(w *world) string {
	w.t.Helper()
	resp, err := w.service.NodeGetVolumeHealth(w.t.Context(), &csipb.NodeGetVolumeHealthRequest{VolumeId: string(w.id)})
	w.must(err)
	reasons := func(h *csipb.VolumeHealth) string {
		var all []string
		for _, e := range h.GetHealthStatuses() {
			if e.GetStatus() == csipb.VolumeHealthErrorType_DATA_LOSS {
				all = append(all, e.GetReason())
			}
		}
		return strings.Join(all, ", ")
	}
	node, controller := reasons(resp.GetVolumeHealth()), reasons(csi.HealthOf(w.attacher.volumes[w.id]))
	if node != controller {
		w.t.Errorf("the node says %q, the controller %q", node, controller)
	}
	return node
}

func TestFormattedVolumeThatReadsBlankIsAnAlarm(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	kept := lose(w)
	w.host.log = nil
	err := w.stage(mountCap(""))
	if codeOf(err) != codes.DataLoss || !strings.Contains(err.Error(), "not formatted again") {
		t.Errorf("%v", err)
	}
	w.nothingLeft()
	if raised, released := slices.Index(w.host.log, "set condition DataLossBlank"), slices.Index(w.host.log, "detach"); raised < 0 || released < raised {
		t.Errorf("not recorded before the volume was released: %q", w.host.log)
	}
	if n := count(w.host.log, "mkfs"); n != 0 {
		t.Errorf("mkfs ran %d times", n)
	}
	w.attacher.restart()
	w.start()
	if got := losses(w); got != "DataLossBlank" {
		t.Errorf("after a restart: %q", got)
	}
	w.host.content[w.id] = host.Content{Other: "noise"}
	w.wantCode("stage noise", w.stage(mountCap("")), codes.DataLoss)
	if got := losses(w); got != "DataLossOverwritten" {
		t.Errorf("overwritten: %q", got)
	}
	w.host.content[w.id] = kept // it was found
	w.must(w.stage(mountCap("")))
	if got := losses(w); got != "" {
		t.Errorf("the alarm goes on: %q", got)
	}
}

// What is corrupt elsewhere, such as the record of a replica, is no lost data.
func TestOtherCorruptionIsNoDataLoss(t *testing.T) {
	for _, at := range []string{"attach", "mount /dev"} {
		w := newWorld(t, volume.Spec{})
		w.host.hook = func(what string) error {
			if strings.HasPrefix(what, at) {
				return fmt.Errorf("meta.json: %w", volume.ErrCorrupt)
			}
			return nil
		}
		w.wantCode(at, w.stage(mountCap("")), codes.DataLoss)
		w.host.hook = nil
		if got := losses(w); got != "" {
			t.Errorf("%s: %q", at, got)
		}
	}
}

// TestDataLossThatCannotBeRecorded: the staging fails as it would, and the next
// one records it.
func TestDataLossThatCannotBeRecorded(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	lose(w)
	w.host.hook = func(what string) error {
		if strings.HasPrefix(what, "set condition") {
			return volume.ErrUnavailable
		}
		return nil
	}
	w.wantCode("stage", w.stage(mountCap("")), codes.DataLoss)
	w.nothingLeft()
	w.host.hook = nil
	w.wantCode("stage again", w.stage(mountCap("")), codes.DataLoss)
	if got := losses(w); got != "DataLossBlank" {
		t.Errorf("%q", got)
	}
}

// TestDataLossIsTakenBackInTheEnd crashes, and fails, the staging that finds the
// data at each step. Once a staging has succeeded the alarm is over.
func TestDataLossIsTakenBackInTheEnd(t *testing.T) {
	for name, interrupt := range map[string]func(*world, int) bool{
		"crash": func(w *world, n int) bool {
			return w.crashing(n, func() error { return w.stage(mountCap("")) })
		},
		"failure": func(w *world, n int) (failed bool) {
			step := 0
			w.host.hook = func(string) error {
				if step++; step == n+1 {
					failed = true
					return errInjected
				}
				return nil
			}
			if err := w.stage(mountCap("")); err != nil && !errors.Is(err, volume.ErrUnavailable) {
				w.nothingLeft()
			}
			w.host.hook = nil
			return failed
		},
	} {
		for _, export := range []string{"fuse", kindLoop} {
			t.Run(name+", "+export, func(t *testing.T) {
				for n := range maxSteps {
					w := newWorld(t, volume.Spec{})
					w.attacher.kind = export
					kept := lose(w)
					w.wantCode("stage", w.stage(mountCap("")), codes.DataLoss)
					w.host.content[w.id] = kept
					more := interrupt(w, n)
					if err := w.stage(mountCap("")); codeOf(err) == codes.Unavailable { // a loop device that is not adopted yet
						_, err = w.attacher.Attach(t.Context(), w.id)
						w.must(err)
						w.must(w.stage(mountCap("")))
					} else {
						w.must(err)
					}
					if got := losses(w); got != "" {
						t.Fatalf("step %d: %q", n, got)
					}
					if !more {
						return
					}
				}
				t.Fatal("staging has no end")
			})
		}
	}
}
