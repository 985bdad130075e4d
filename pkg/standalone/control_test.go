package standalone

import (
	"context"
	"testing"
	"time"
)

// TestControlRefusesOtherNames: a name means the process that is named so, or
// nothing, whatever characters are in it.
func TestControlRefusesOtherNames(t *testing.T) {
	dir, p := child(t, "exec sleep 600")
	s := &Supervisor{opt: Options{Dir: dir}, layout: Layout{Processes: []string{"p"}}, procs: map[string]*process{"p": p}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	ended := make(chan error, 1)
	control, err := s.listenControl()
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- s.serveControl(ctx, control) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	c := NewClient(dir)
	for {
		all, err := c.Status(ctx)
		if err == nil && len(all) == 1 && all[0].Running {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("status: %v, %v", all, err)
		}
	}
	for _, name := range []string{"q", "p?x", "p#x", "p/", "p/p", "../p", "..", "p%20", " p", "p\n", "\x00"} {
		for _, verb := range []string{"start", "stop", "kill"} {
			if err := c.Do(ctx, verb, name); err == nil {
				t.Errorf("%s %q was done", verb, name)
			}
		}
	}
	if !p.running() {
		t.Fatal("the process was ended under another name")
	}
	if err := c.Do(ctx, "kill", "p"); err != nil || p.running() {
		t.Errorf("kill: %v, running %v", err, p.running())
	}
}
