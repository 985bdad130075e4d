package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/host"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

var errInjected = errors.New("injected")

// kinds are the kinds of volumes and exports whose life the tests below go
// through.
var kinds = map[string]struct {
	c      *csipb.VolumeCapability
	export string
}{
	"mount, fuse": {mountCap(""), "fuse"},
	"mount, loop": {mountCap(""), kindLoop},
	"block, fuse": {blockCap(), "fuse"},
	"block, loop": {blockCap(), kindLoop},
}

// maxSteps is more than any of the calls takes.
const maxSteps = 200

// TestFailureAtEveryStep lets each step of staging fail once. Nothing may remain,
// unless the code says that the outcome is uncertain.
func TestFailureAtEveryStep(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			for n := range maxSteps {
				w := newWorld(t, volume.Spec{Block: kind.c.GetBlock() != nil})
				w.attacher.kind = kind.export
				step, failed := 0, ""
				w.host.hook = func(what string) error {
					if step++; step == n+1 {
						failed = what
						return errInjected
					}
					return nil
				}
				err := w.stage(kind.c)
				w.host.hook = nil
				if failed == "" {
					w.must(err)
					return // went through all steps
				}
				if err != nil {
					w.nothingLeft()
				}
				w.must(w.stage(kind.c)) // and it can be repeated
				w.must(w.unstage())
				w.nothingLeft()
				if t.Failed() {
					t.Fatalf("failed step %d: %s: %v", n, failed, err)
				}
			}
			t.Fatal("staging has no end")
		})
	}
}

// TestFailureToUndo lets all steps fail from one on, those of undoing too. The
// code must then not be final.
func TestFailureToUndo(t *testing.T) {
	for n := range maxSteps {
		w := newWorld(t, volume.Spec{})
		step, failed := 0, ""
		w.host.hook = func(what string) error {
			if step++; step > n {
				failed = failed + what + ", "
				return errInjected
			}
			return nil
		}
		err := w.stage(mountCap(""))
		w.host.hook = nil
		if failed == "" {
			w.must(err)
			return
		}
		if codeOf(err) == codes.Unavailable {
			w.must(w.unstage()) // what kubelet does then
		}
		w.nothingLeft()
		if t.Failed() {
			t.Fatalf("failed steps from %d: %s: %v", n, failed, err)
		}
	}
}

// crash ends a process in the middle of a call.
type crash struct{}

// crashing runs call, and ends it at step n by a panic that only this function
// catches; locks and memory are then those of a dead process. It reports whether
// the crash happened.
func (w *world) crashing(n int, call func() error) (crashed bool) {
	step := 0
	w.host.hook = func(string) error {
		if step++; step == n+1 {
			panic(crash{})
		}
		return nil
	}
	defer func() {
		w.host.hook = nil
		if r := recover(); r != nil {
			if r != (crash{}) {
				panic(r)
			}
			crashed = true
			w.attacher.restart()
			w.start()
		}
	}()
	w.must(call())
	return false
}

// TestCrashAtEveryStep crashes each call at each of its steps. The call repeated
// by the next process must succeed, and so must the rest of the volume's life.
func TestCrashAtEveryStep(t *testing.T) {
	for name, kind := range kinds {
		calls := []struct {
			name   string
			before func(*world)
			call   func(*world) error
			after  func(*world)
		}{
			{"stage", func(*world) {}, func(w *world) error { return w.stage(kind.c) }, func(w *world) {
				w.must(w.publish(target1, kind.c))
				w.must(w.unpublish(target1))
				w.must(w.unstage())
			}},
			{"stage, then give up", func(*world) {}, func(w *world) error { return w.stage(kind.c) }, func(w *world) { w.must(w.unstage()) }},
			{"publish", func(w *world) { w.must(w.stage(kind.c)) }, func(w *world) error {
				if err := w.stage(kind.c); err != nil { // kubelet's order after a restart
					return err
				}
				return w.publish(target1, kind.c)
			}, func(w *world) {
				w.must(w.unpublish(target1))
				w.must(w.unstage())
			}},
			{"unpublish", func(w *world) {
				w.must(w.stage(kind.c))
				w.must(w.publish(target1, kind.c))
			}, func(w *world) error { return w.unpublish(target1) }, func(w *world) { w.must(w.unstage()) }},
			{"unstage", func(w *world) { w.must(w.stage(kind.c)) }, (*world).unstage, func(*world) {}},
		}
		for _, call := range calls {
			t.Run(name+", "+call.name, func(t *testing.T) {
				for n := range maxSteps {
					w := newWorld(t, volume.Spec{Block: kind.c.GetBlock() != nil})
					w.attacher.kind = kind.export
					call.before(w)
					crashed := w.crashing(n, func() error { return call.call(w) })
					if crashed && call.name != "stage, then give up" {
						if err := call.call(w); err != nil {
							t.Fatalf("repeated after a crash at step %d: %v", n, err)
						}
					}
					call.after(w)
					w.nothingLeft()
					if count(w.host.log, "mkfs") > 1 || t.Failed() {
						t.Fatalf("after a crash at step %d: %q", n, w.host.log)
					}
					if !crashed {
						return
					}
				}
				t.Fatal("the call has no end")
			})
		}
	}
}

func TestDeadExportIsRepaired(t *testing.T) {
	for name, die := range map[string]func(*world){
		"export died":      func(w *world) { w.attacher.die(w.id) },
		"process died":     func(w *world) { w.attacher.restart(); w.start() },
		"filesystem ended": func(w *world) { w.host.dead["/dev/loop0"] = true; w.attacher.next++ },
	} {
		for kindName, c := range map[string]*csipb.VolumeCapability{"mount": mountCap(""), "block": blockCap()} {
			if name == "filesystem ended" && kindName == "block" {
				continue // it has none
			}
			t.Run(name+", "+kindName, func(t *testing.T) {
				w := newWorld(t, volume.Spec{Block: kindName == "block"})
				w.must(w.stage(c))
				w.must(w.publish(target1, c))
				die(w)
				w.wantCode("publish on the dead export", w.publish(target1, c), codes.FailedPrecondition)
				if name == "filesystem ended" {
					delete(w.host.dead, "/dev/loop0") // a new mount of it works
					w.host.hook = onceDead(w.host)
				}
				w.must(w.stage(c))
				w.host.hook = nil
				w.must(w.publish(target1, c))
				rec, _, err := w.service.records.load(w.id)
				w.must(err)
				if top, _ := w.host.inspect(target1).Top(); !top.Of(rec.Device) {
					t.Errorf("the target shows %+v, the volume is %s", top, rec.Device)
				}
				w.must(w.unpublish(target1))
				w.must(w.unstage())
				w.nothingLeft()
			})
		}
	}
}

// onceDead makes the first questions about a filesystem fail, until it is
// unmounted.
func onceDead(h *fakeHost) func(string) error {
	unmounted := false
	return func(what string) error {
		switch {
		case strings.HasPrefix(what, "unmount"):
			unmounted = true
		case what == "alive" && !unmounted:
			return fmt.Errorf("input/output error: %w", volume.ErrUnavailable)
		}
		return nil
	}
}

// TestDeviceNumberIsReused reboots the node and lets another volume get the
// device that the record of the first one names.
func TestDeviceNumberIsReused(t *testing.T) {
	for name, c := range map[string]*csipb.VolumeCapability{"mount": mountCap(""), "block": blockCap()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{Block: name == "block"})
			w.must(w.stage(c))
			w.must(w.publish(target1, c))
			w.attacher.restart()
			w.attacher.next = 0
			w.host.mounts, w.host.dead = nil, map[string]bool{}
			w.start()

			other := volume.IDFor("other")
			v := w.attacher.volumes[w.id]
			v.ID, v.Status.Format = other, volume.Format{}
			w.attacher.volumes[other] = v
			w.host.kinds[staging+"2"] = host.KindDirectory
			_, err := w.service.NodeStageVolume(t.Context(), &csipb.NodeStageVolumeRequest{
				VolumeId: string(other), StagingTargetPath: staging + "2", VolumeCapability: c,
			})
			w.must(err)
			_, err = w.service.NodePublishVolume(t.Context(), &csipb.NodePublishVolumeRequest{
				VolumeId: string(other), StagingTargetPath: staging + "2", TargetPath: target2, VolumeCapability: c,
			})
			w.must(err)
			if at, _ := w.attacher.Get(other); at.Device != "/dev/loop0" {
				t.Fatalf("the device was not reused: %+v", at)
			}
			before := fmt.Sprint(w.host.mounts)
			w.wantCode("unpublish the other volume's target", w.unpublish(target2), codes.FailedPrecondition)
			w.must(w.unpublish(target1))
			w.must(w.unstage())
			if after := fmt.Sprint(w.host.mounts); after != before {
				t.Errorf("mounts: %s, before: %s", after, before)
			}
		})
	}
}

func TestUnstageOfADeadExport(t *testing.T) {
	for name, c := range map[string]*csipb.VolumeCapability{"mount": mountCap(""), "block": blockCap()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, volume.Spec{Block: name == "block"})
			w.must(w.stage(c))
			w.must(w.publish(target1, c))
			w.attacher.restart()
			w.start()
			w.must(w.unpublish(target1))
			w.must(w.unstage())
			w.nothingLeft()
		})
	}
}
