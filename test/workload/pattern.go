package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Pattern is a piece of a block device, or of a file, with known bytes.
type Pattern struct {
	Seed       uint64
	Off, Bytes int64 // multiples of patternChunk
}

const patternChunk = 1 << 20

// Write writes the pattern past the page cache and flushes it.
func (p Pattern) Write(ctx context.Context, path string) error {
	return p.each(ctx, path, os.O_RDWR, func(f *os.File, buf, want []byte, off int64) error {
		copy(buf, want)
		_, err := f.WriteAt(buf, off)
		return err
	})
}

// Verify reads the pattern past the page cache and compares every byte.
func (p Pattern) Verify(ctx context.Context, path string) error {
	return p.each(ctx, path, os.O_RDONLY, func(f *os.File, buf, want []byte, off int64) error {
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		if !bytes.Equal(buf, want) {
			i := 0
			for buf[i] == want[i] {
				i++
			}
			return fmt.Errorf("%s: byte %d is %#x, not %#x", path, off+int64(i), buf[i], want[i])
		}
		return nil
	})
}

func (p Pattern) each(ctx context.Context, path string, flag int, do func(f *os.File, buf, want []byte, off int64) error) (err error) {
	f, err := os.OpenFile(path, flag|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, err := alignedBuffer(patternChunk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	want := make([]byte, patternChunk)
	src := stream(p.Seed, 0)
	for off := p.Off; off < p.Off+p.Bytes; off += patternChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.ReadFull(src, want); err != nil {
			return err
		}
		if err := do(f, buf, want, off); err != nil {
			return err
		}
	}
	if flag == os.O_RDONLY {
		return nil
	}
	return f.Sync()
}

// alignedBuffer is a buffer that O_DIRECT takes.
func alignedBuffer(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("mmap a buffer: %w", err)
	}
	return b, nil
}
