package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFilesTellWhatDiffers(t *testing.T) {
	dir := t.TempDir()
	set, err := WriteFiles(t.Context(), dir, 1, 5, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(set) != 5 || set.Bytes() != 3<<20 {
		t.Fatalf("wrote %d files with %d bytes", len(set), set.Bytes())
	}
	if err := set.Verify(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(dir, set[2].Name), set[2].Bytes-1)
	if err := os.Remove(filepath.Join(dir, set[4].Name)); err != nil {
		t.Fatal(err)
	}
	err = set.Verify(t.Context(), dir)
	for _, name := range []string{set[2].Name, set[4].Name} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not reported: %v", name, err)
		}
	}
}

func TestPatternTellsWhatDiffers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := Pattern{Seed: 3, Off: 1 << 20, Bytes: 4 << 20}
	if err := p.Write(t.Context(), path); err != nil {
		t.Skip("needs O_DIRECT on the temporary directory: ", err)
	}
	if err := p.Verify(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	damage(t, path, 3<<20)
	if p.Verify(t.Context(), path) == nil {
		t.Error("a changed byte was not seen")
	}
}

func TestWriterKnowsWhatMustBeThere(t *testing.T) {
	o := WriterOptions{Path: filepath.Join(t.TempDir(), "f"), Records: 16, SyncEvery: 4, Interval: time.Millisecond}
	w, err := StartWriter(o)
	if err != nil {
		t.Skip("needs O_DIRECT on the temporary directory: ", err)
	}
	for w.Progress().Synced < 40 {
		select {
		case <-w.Done():
			t.Fatal(w.Progress().Err)
		case <-time.After(time.Millisecond):
		}
	}
	p := w.Stop()
	if p.Err != nil || p.Synced != p.Written {
		t.Fatalf("stopped with %+v", p)
	}
	if err := o.Verify(o.Path, p); err != nil {
		t.Fatal(err)
	}
	lost := p
	lost.Started, lost.Synced = p.Started+uint64(o.Records), p.Synced+uint64(o.Records)
	if o.Verify(o.Path, lost) == nil {
		t.Error("a missing round of records was not seen")
	}
	damage(t, o.Path, 5*RecordBytes+99)
	if o.Verify(o.Path, p) == nil {
		t.Error("a damaged record was not seen")
	}
}

func damage(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
