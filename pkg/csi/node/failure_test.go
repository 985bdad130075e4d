package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// TestFailedPublication: the code is final only if nothing remains.
func TestFailedPublication(t *testing.T) {
	for name, test := range map[string]struct {
		fail []string // beginnings of steps
		code codes.Code
	}{
		"undone":     {[]string{"bind"}, codes.FailedPrecondition},
		"not undone": {[]string{"bind", "remove"}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{})
			w.must(w.stage(mountCap("")))
			w.host.hook = func(what string) error {
				if slices.ContainsFunc(test.fail, func(begin string) bool { return strings.HasPrefix(what, begin) }) {
					return volume.ErrPrecondition
				}
				return nil
			}
			w.wantCode("publish", w.publish(target1, mountCap("")), test.code)
			w.host.hook = nil
			if test.code == codes.Unavailable {
				w.must(w.unpublish(target1)) // what kubelet does then
			}
			w.must(w.unstage())
			w.nothingLeft()
		})
	}
}

// TestFailedRepairOfAPublishedVolume: what is still bound to a target is left, so
// the code must not be final.
func TestFailedRepairOfAPublishedVolume(t *testing.T) {
	w := newWorld(t, volume.Spec{})
	w.must(w.stage(mountCap("")))
	w.must(w.publish(target1, mountCap("")))
	w.attacher.die(w.id)
	w.host.hook = func(what string) error {
		if strings.HasPrefix(what, "mount ") {
			return fmt.Errorf("no such filesystem: %w", volume.ErrPrecondition)
		}
		return nil
	}
	err := w.stage(mountCap(""))
	if codeOf(err) != codes.Unavailable || !strings.Contains(err.Error(), "no such filesystem") || !strings.Contains(err.Error(), "still published") {
		t.Errorf("%v", err)
	}
	if _, attached := w.attacher.Get(w.id); !attached {
		t.Error("the volume was released under its target")
	}
	w.host.hook = nil
	w.must(w.stage(mountCap("")))
	w.must(w.publish(target1, mountCap("")))
	w.must(w.unpublish(target1))
	w.must(w.unstage())
	w.nothingLeft()
}
