package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

const (
	blockBytes  = 4096
	sectorBytes = 512
	sectors     = blockBytes / sectorBytes
)

// content is what is in a block: the number of the write that each sector is of,
// or 0 for zeroes. All are the same unless a crash has torn the write.
type content [sectors]uint32

func uniform(val uint32) (c content) {
	for i := range c {
		c[i] = val
	}
	return c
}

func (c content) String() string {
	if c == uniform(c[0]) {
		return fmt.Sprint(c[0])
	}
	return fmt.Sprint([sectors]uint32(c))
}

// fill writes a content as bytes.
func (c content) fill(p []byte) {
	clear(p)
	for i, val := range c {
		if val != 0 {
			binary.LittleEndian.PutUint32(p[i*sectorBytes:], val)
			binary.LittleEndian.PutUint32(p[(i+1)*sectorBytes-4:], val)
		}
	}
}

// parse is the content that these bytes are.
func parse(p []byte) (c content) {
	for i := range c {
		c[i] = binary.LittleEndian.Uint32(p[i*sectorBytes:])
		if last := binary.LittleEndian.Uint32(p[(i+1)*sectorBytes-4:]); last != c[i] {
			panic(fmt.Sprintf("a sector begins with %d and ends with %d", c[i], last))
		}
	}
	return c
}

// bytesOf is n blocks with this content.
func bytesOf(val uint32, n int64) []byte {
	p := make([]byte, n)
	c := uniform(val)
	for off := int64(0); off < n; off += blockBytes {
		c.fill(p[off : off+blockBytes])
	}
	return p
}

// cell is a block on a disk.
type cell struct {
	content
	data bool // not a hole
}

// image is a data.img.
type image struct {
	now []cell
	// old has, of each block that was changed since the last sync, what a power loss
	// may leave: the durable cell, then each that was written since but the last.
	old map[int][]cell
	// gone: the blocks that a sync failed to write. The kernel takes them to be
	// clean: no later sync makes them durable.
	gone    map[int]bool
	durable int // size, in blocks
}

func (m *image) truncate(blocks int) {
	m.now = append(m.now, make([]cell, blocks-len(m.now))...)
}

func (m *image) set(b int, c cell) {
	if m.old == nil {
		m.old, m.gone = map[int][]cell{}, map[int]bool{}
	}
	m.old[b] = append(m.old[b], m.now[b])
	delete(m.gone, b)
	m.now[b] = c
}

// powerLoss leaves of each unsynced block any of its contents, or a mix of two
// that followed each other; whether one was lost.
func (m *image) powerLoss(rng *rand.Rand) (lost bool) {
	if m.durable < len(m.now) && rng.IntN(2) == 0 {
		m.now = m.now[:m.durable]
	}
	m.durable = len(m.now)
	for b := range m.now { // in order
		old := m.old[b]
		if len(old) == 0 {
			continue
		}
		all := append(old, m.now[b])
		i := rng.IntN(len(all))
		c := all[i]
		if i+1 < len(all) && rng.IntN(4) == 0 {
			at := 1 + rng.IntN(sectors-1)
			copy(c.content[at:], all[i+1].content[at:])
			c.data = true
		}
		lost = lost || c.content != m.now[b].content
		m.now[b] = c
	}
	m.old, m.gone = nil, nil
	return lost
}

// openImage is an image in use: replica.Image.
type openImage struct {
	*image
	d *disk
	n *inode
}

// ReadAt implements replica.Image.
func (m *openImage) ReadAt(p []byte, off int64) error {
	if o := m.d.step("read"); o.err != nil {
		return o.err
	}
	for i := range len(p) / blockBytes {
		m.now[int(off/blockBytes)+i].fill(p[i*blockBytes : (i+1)*blockBytes])
	}
	return nil
}

// WriteAt implements replica.Image.
func (m *openImage) WriteAt(p []byte, off int64) error {
	o := m.d.step("write")
	n := len(p) / blockBytes
	if o.part {
		n = m.d.rng.IntN(n + 1)
	}
	for i := range n {
		b := int(off/blockBytes) + i
		if m.d.full && !m.now[b].data {
			return unix.ENOSPC // in part
		}
		if o.err == nil || o.part {
			m.set(b, cell{parse(p[i*blockBytes : (i+1)*blockBytes]), true})
		}
	}
	return o.err
}

// WriteDurable implements replica.Image.
func (m *openImage) WriteDurable(p []byte, off int64) error {
	if err := m.WriteAt(p, off); err != nil {
		return err
	}
	o := m.d.step("durable write")
	if o.err == nil || o.part {
		for i := range len(p) / blockBytes {
			delete(m.old, int(off/blockBytes)+i)
		}
	}
	return o.err
}

// Sync implements replica.Image.
func (m *openImage) Sync() error {
	o := m.d.step("sync")
	if errors.Is(o.err, errDead) && !o.part {
		return o.err
	}
	m.durable = len(m.now)
	for b := range m.now {
		switch {
		case len(m.old[b]) == 0 || m.gone[b]:
		case o.err == nil || o.part && m.d.rng.IntN(2) == 0:
			delete(m.old, b)
		case !errors.Is(o.err, errDead):
			m.gone[b] = true
		}
	}
	return o.err
}

// Punch implements replica.Image.
func (m *openImage) Punch(off, n int64) error { return m.zero(off, n, cell{}) }

// Zero implements replica.Image.
func (m *openImage) Zero(off, n int64) error {
	if m.d.full && !m.Allocated(off, n) {
		return unix.ENOSPC
	}
	return m.zero(off, n, cell{data: true})
}

func (m *openImage) zero(off, n int64, c cell) error {
	o := m.d.step("punch")
	for b := off / blockBytes; b < (off+n)/blockBytes; b++ {
		if o.err == nil || o.part && m.d.rng.IntN(2) == 0 {
			m.set(int(b), c)
		}
	}
	return o.err
}

// Allocated implements replica.Image.
func (m *openImage) Allocated(off, n int64) bool {
	for b := off / blockBytes; b < (off+n)/blockBytes; b++ {
		if !m.now[b].data {
			return false
		}
	}
	return true
}

// Extents implements replica.Image.
func (m *openImage) Extents(off, n int64) (out []block.Extent, err error) {
	if o := m.d.step("extents"); o.err != nil {
		return nil, o.err
	}
	for b := off / blockBytes; b < (off+n)/blockBytes; b++ {
		hole := !m.now[b].data
		if last := len(out) - 1; last >= 0 && out[last].Hole == hole {
			out[last].Len += blockBytes
			continue
		}
		out = append(out, block.Extent{Len: blockBytes, Hole: hole})
	}
	return out, nil
}

// WriteBack implements replica.Image: a part of what is not durable becomes so.
func (m *openImage) WriteBack() error {
	o := m.d.step("write back")
	if o.err != nil {
		return o.err
	}
	for b := range m.now {
		if len(m.old[b]) > 0 && !m.gone[b] && m.d.rng.IntN(2) == 0 {
			delete(m.old, b)
		}
	}
	return nil
}

// Close implements replica.Image.
func (m *openImage) Close() error {
	if !m.d.dead {
		m.n.locked = false
	}
	return nil
}
