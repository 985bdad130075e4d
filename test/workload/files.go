package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// File is one file as it was written.
type File struct {
	Name   string
	Bytes  int64
	SHA256 string
}

// FileSet is what WriteFiles wrote.
type FileSet []File

// WriteFiles writes count files of random sizes, total bytes in all, and syncs
// them and the directory. The same seed writes the same bytes.
func WriteFiles(ctx context.Context, dir string, seed uint64, count int, total int64) (FileSet, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	var set FileSet
	left := total
	for i := range count {
		size := left
		if rest := int64(count - i); rest > 1 {
			size = r.Int64N(2*left/rest) + 1
		}
		left -= size
		f := File{Name: fmt.Sprintf("file-%03d", i), Bytes: size}
		sum, err := writeFile(ctx, filepath.Join(dir, f.Name), stream(seed, uint64(i)), size)
		if err != nil {
			return nil, err
		}
		f.SHA256 = sum
		set = append(set, f)
	}
	return set, syncDir(dir)
}

// stream is an endless source of bytes.
func stream(seed, n uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i], key[8+i] = byte(seed>>(8*i)), byte(n>>(8*i))
	}
	return rand.NewChaCha8(key)
}

func writeFile(ctx context.Context, path string, from io.Reader, size int64) (sum string, err error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		p := buf[:min(size, int64(len(buf)))]
		if _, err := io.ReadFull(from, p); err != nil {
			return "", err
		}
		h.Write(p)
		if _, err := f.Write(p); err != nil {
			return "", err
		}
		size -= int64(len(p))
	}
	return hex.EncodeToString(h.Sum(nil)), f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Verify reads all files and compares length and checksum. It reports all that
// differ.
func (s FileSet) Verify(ctx context.Context, dir string) error {
	var errs []error
	for _, f := range s {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, f.verify(dir))
	}
	return errors.Join(errs...)
}

func (f File) verify(dir string) error {
	in, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return err
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.Copy(h, in)
	switch sum := hex.EncodeToString(h.Sum(nil)); {
	case err != nil:
		return fmt.Errorf("read %s: %w", f.Name, err)
	case n != f.Bytes:
		return fmt.Errorf("%s has %d bytes, not %d", f.Name, n, f.Bytes)
	case sum != f.SHA256:
		return fmt.Errorf("%s has SHA-256 %s, not %s", f.Name, sum, f.SHA256)
	}
	return nil
}

// Bytes is the size of all files.
func (s FileSet) Bytes() int64 {
	var n int64
	for _, f := range s {
		n += f.Bytes
	}
	return n
}
