package csi

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// quietCalls are repeated by sidecars and kubelet all the time; they are worth a
// line only when they fail.
var quietCalls = []string{"Probe", "GetPlugin", "ControllerGet", "ControllerList", "NodeGet", "GetCapacity", "List"}

// logCalls writes one line per call, without secrets: at Info for calls that
// change something, at Warn for those that fail.
func (s *Server) logCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	resp, err := next(ctx, req)
	method := path.Base(info.FullMethod)
	level := slog.LevelInfo
	for _, prefix := range quietCalls {
		if strings.HasPrefix(method, prefix) {
			level = slog.LevelDebug
		}
	}
	if err != nil {
		level = slog.LevelWarn
	}
	if !s.log.Enabled(ctx, level) {
		return resp, err
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.Duration("took", time.Since(began)), slog.String("code", status.Code(err).String()),
		slog.String("request", protosanitizer.StripSecrets(req).String()),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	s.log.LogAttrs(ctx, level, "CSI call", attrs...)
	return resp, err
}

// recoverPanics turns a broken invariant of one call into INTERNAL, so that it
// doesn't take the node's other volumes with it. What it says and its stack go to
// the log; the caller may show a status to anybody.
func (s *Server) recoverPanics(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			method := path.Base(info.FullMethod)
			s.log.Error("CSI call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s panicked; the log says more", method)
		}
	}()
	return next(ctx, req)
}

// convertErrors gives every error its code.
func convertErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if err != nil {
		return nil, toStatus(err)
	}
	return resp, nil
}

// withDeadline bounds calls whose caller did not.
func withDeadline(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, bounded := ctx.Deadline(); bounded {
		return next(ctx, req)
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	return next(ctx, req)
}
