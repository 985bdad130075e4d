package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// report prints what happens, and when.
type report struct {
	start time.Time

	mu  sync.Mutex
	out io.Writer // Guarded by mu.
}

func newReport(out io.Writer) *report { return &report{start: time.Now(), out: out} }

// chapter prints a heading.
func (r *report) chapter(title string) { r.line("\n%s\n%s", title, strings.Repeat("-", len(title))) }

// step does one thing; its time goes to the line that ends it.
func (r *report) step(title string, do func() error) error {
	began := time.Now()
	r.line("[%6.2f s] %s", began.Sub(r.start).Seconds(), title)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	r.line("%10s  done in %.2f s", "", time.Since(began).Seconds())
	return nil
}

// say prints a detail of the current step.
func (r *report) say(format string, args ...any) {
	for text := range strings.Lines(fmt.Sprintf(format, args...)) {
		r.line("%10s  | %s", "", strings.TrimRight(text, "\n"))
	}
}

func (r *report) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
}

func (r *report) elapsed() time.Duration { return time.Since(r.start) }

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }

func gib(bytes int64) string { return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30)) }
