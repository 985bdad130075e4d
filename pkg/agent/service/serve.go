package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/agent/agentpb"
)

// Serve answers on l until ctx ends; then calls under way are cut off, and it
// returns ctx's error. A call that panics fails alone: the node's volumes go on.
func Serve(ctx context.Context, l net.Listener, s *Server) error {
	g := grpc.NewServer(grpc.UnaryInterceptor(recoverPanics(s.log)))
	agentpb.RegisterAgentServer(g, s)
	if s.Operator != nil {
		agentpb.RegisterOperatorServer(g, s.Operator)
	}
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("agent: %w", err)
	}
	return ctx.Err()
}

func recoverPanics(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("a call to the agent panicked", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				err = status.Errorf(codes.Internal, "%s panicked", info.FullMethod)
			}
		}()
		return handler(ctx, req)
	}
}
