package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/agent"
	"github.com/holdfast-csi/holdfast/pkg/replica"
)

// panicking is a node whose listing has a bug.
type panicking struct{ Replicas }

func (panicking) List() []replica.Info { panic("a bug") }

func TestPanicFailsTheCallAlone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, New(panicking{}, slog.New(slog.DiscardHandler))) }()
	c := agent.NewClients()
	for range 2 { // the second shows that the server lives
		cctx, ccancel := context.WithTimeout(ctx, 30*time.Second)
		if _, err := c.ListReplicas(cctx, l.Addr().String()); err == nil || cctx.Err() != nil {
			t.Errorf("a call that panics: %v, %v", err, cctx.Err())
		}
		ccancel()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
