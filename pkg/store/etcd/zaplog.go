package etcd

import (
	"context"
	"log/slog"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo makes a zap logger for etcd's server that writes warnings and errors to
// ours. etcd's informational messages, some hundred per start, are dropped. What
// etcd calls fatal panics instead of ending the process: StartEmbedded recovers.
//
// Once closing has ended everything goes to the debug level: etcd reports each
// listener that it closes as an error.
func zapTo(closing context.Context, logger *slog.Logger) *zap.Logger {
	core := slogCore{logger: logger.With("component", "etcd"), closing: closing}
	return zap.New(core, zap.WithFatalHook(zapcore.WriteThenPanic))
}

// expected are warnings that tell of how we use etcd, not of a fault.
var expected = []string{
	"Running http and grpc server on single port",
	"simple token is not cryptographically signed",
	"serving client traffic insecurely",
}

// slogCore is a zapcore.Core on a slog.Logger.
type slogCore struct {
	logger  *slog.Logger
	closing context.Context
}

// Enabled implements zapcore.LevelEnabler.
func (c slogCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	c.logger = c.logger.With(attrs(fields)...)
	return c
}

// Check implements zapcore.Core.
func (c slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(entry.Level) {
		return checked
	}
	for _, text := range expected {
		if strings.HasPrefix(entry.Message, text) {
			return checked
		}
	}
	return checked.AddCore(entry, c)
}

// Write implements zapcore.Core.
func (c slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case c.closing.Err() != nil:
		level = slog.LevelDebug
	case entry.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	}
	handler := c.logger.Handler()
	if !handler.Enabled(context.Background(), level) {
		return nil
	}
	record := slog.NewRecord(entry.Time, level, entry.Message, 0)
	record.Add(attrs(fields)...)
	return handler.Handle(context.Background(), record)
}

// Sync implements zapcore.Core.
func (c slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, 2*len(enc.Fields))
	for _, f := range fields { // in their order; an inlined object has no key of its own
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, f.Key, v)
		}
	}
	return out
}
