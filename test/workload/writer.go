package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RecordBytes is the size of a record: one logical block, so that a crash leaves
// it old or new.
const RecordBytes = 4096

// WriterOptions describe a Writer.
type WriterOptions struct {
	Path string
	// Off and Records are the ring in which it writes: record i is at Off +
	// (i mod Records) * RecordBytes.
	Off     int64
	Records int
	// SyncEvery: a flush after so many records.
	SyncEvery int
	// Interval is the pause between two records, which bounds the load.
	Interval time.Duration
}

// Writer goes on writing records, past the page cache, until it is stopped or a
// write fails.
type Writer struct {
	opt  WriterOptions
	file *os.File
	buf  []byte
	quit chan struct{}
	done chan struct{}

	mu   sync.Mutex
	prog Progress // Guarded by mu.
}

// Progress is what a Writer has done.
type Progress struct {
	Started uint64 // records whose writing was begun
	Written uint64 // records that were answered
	Synced  uint64 // of the first Synced records each must survive
	// Slowest is the longest time that a write or flush took.
	Slowest time.Duration
	Err     error // the first; the writer stopped there
}

// StartWriter opens the file or device and begins. A missing file is made.
func StartWriter(o WriterOptions) (*Writer, error) {
	f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o644)
	if err != nil {
		return nil, err
	}
	buf, err := alignedBuffer(RecordBytes)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w := &Writer{opt: o, file: f, buf: buf, quit: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w, nil
}

func (w *Writer) run() {
	defer close(w.done)
	tick := time.NewTicker(w.opt.Interval)
	defer tick.Stop()
	for seq := uint64(0); ; seq++ {
		select {
		case <-w.quit:
			w.timed(w.sync)
			return
		case <-tick.C:
		}
		if !w.timed(func() error { return w.write(seq) }) {
			return
		}
		if (seq+1)%uint64(w.opt.SyncEvery) == 0 && !w.timed(w.sync) {
			return
		}
	}
}

// timed does one thing, notes its time and error, and says whether it went well.
func (w *Writer) timed(do func() error) bool {
	start := time.Now()
	err := do()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prog.Slowest = max(w.prog.Slowest, time.Since(start))
	w.prog.Err = err
	return err == nil
}

func (w *Writer) write(seq uint64) error {
	w.mu.Lock()
	w.prog.Started = seq + 1
	w.mu.Unlock()
	fillRecord(w.buf, seq)
	if _, err := w.file.WriteAt(w.buf, w.opt.at(seq)); err != nil {
		return fmt.Errorf("write record %d: %w", seq, err)
	}
	w.mu.Lock()
	w.prog.Written = seq + 1
	w.mu.Unlock()
	return nil
}

func (w *Writer) sync() error {
	written := w.Progress().Written
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("flush after record %d: %w", written, err)
	}
	w.mu.Lock()
	w.prog.Synced = written
	w.mu.Unlock()
	return nil
}

// Progress is what was done so far.
func (w *Writer) Progress() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.prog
}

// Lap returns the progress, and begins a new measurement of Slowest.
func (w *Writer) Lap() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.prog
	w.prog.Slowest = 0
	return p
}

// Done is closed when the writer has ended, by Stop or by an error.
func (w *Writer) Done() <-chan struct{} { return w.done }

// Stop ends the writer after a last flush and returns what it has done. It waits
// for the write under way.
func (w *Writer) Stop() Progress {
	select {
	case <-w.quit:
	default:
		close(w.quit)
	}
	<-w.done
	if w.file != nil {
		_ = w.file.Close()     // everything that counts was flushed
		_ = unix.Munmap(w.buf) // made by mmap above
		w.file = nil
	}
	return w.Progress()
}

func (o WriterOptions) at(seq uint64) int64 {
	return o.Off + int64(seq%uint64(o.Records))*RecordBytes
}

var crcTable = crc64.MakeTable(crc64.ECMA)

// fillRecord writes | sequence number, 8 bytes | noise | CRC-64 of both, 8 bytes |.
func fillRecord(b []byte, seq uint64) {
	binary.LittleEndian.PutUint64(b, seq)
	r := rand.NewPCG(seq, 2)
	for i := 8; i < len(b)-8; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	binary.LittleEndian.PutUint64(b[len(b)-8:], crc64.Checksum(b[:len(b)-8], crcTable))
}

// Verify reads the ring back, from any path that shows it: each place must hold
// its last flushed record, or a later one that was begun.
func (o WriterOptions) Verify(path string, p Progress) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ring := uint64(o.Records)
	buf := make([]byte, RecordBytes)
	for slot := range min(ring, p.Synced) {
		// The last record of this place that was flushed, and the last begun.
		synced := slot + (p.Synced-1-slot)/ring*ring
		started := slot + (p.Started-1-slot)/ring*ring
		if _, err := f.ReadAt(buf, o.at(slot)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read record %d: %w", synced, err)
		}
		got := binary.LittleEndian.Uint64(buf)
		whole := binary.LittleEndian.Uint64(buf[len(buf)-8:]) == crc64.Checksum(buf[:len(buf)-8], crcTable)
		if !whole || got < synced || got > started || got%ring != slot {
			return fmt.Errorf("%s: the place of record %d, which was flushed, holds record %d (checksum right: %t)", path, synced, got, whole)
		}
	}
	return nil
}
