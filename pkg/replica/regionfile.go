package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-csi/holdfast/pkg/bitmap"
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/pool"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// regions.map, format version 1: pages of 4096 bytes, each of them
//
//	+--------+------+-----------------------------------------------------+
//	| offset | size | little-endian                                       |
//	+--------+------+-----------------------------------------------------+
//	| 0      | 4    | "HFRM"                                              |
//	| 4      | 2    | format version, 1                                   |
//	| 6      | 2    | kind: 1 directory, 2 intent bits, 3 missed bits     |
//	| 8      | 8    | page number in the file                             |
//	| 16     | 8    | sequence number: how often the page was written     |
//	| 24     | 36   | UID of the replica's volume                         |
//	| 64     | 4028 | the content                                         |
//	| 4092   | 4    | CRC-32C of all before it                            |
//	+--------+------+-----------------------------------------------------+
//
// Page 0 is the directory: a byte that says whether what others missed is unknown
// (1), then maxMissed names of absent replicas, each as its length in a byte and
// 255 bytes. Then follow groups of 1+maxMissed pages; group g has the bits of the
// regions from g*regionsPerPage on: first the intent bits, then what the replica
// of each name missed.
//
// A page that is torn, from elsewhere or not there counts as if every bit in it
// were set, and a directory as if what others missed were unknown: too much is
// compared then, and nothing is lost. So pages are overwritten in place.
const (
	regionsFile    = "regions.map"
	pageBytes      = 4096
	pageHeader     = 64
	pageContent    = pageBytes - pageHeader - 4
	regionsPerPage = pageContent * 8
	maxMissed      = 7
	nameBytes      = 256
	regionsFormat  = 1
)

const (
	pageDirectory uint16 = iota + 1
	pageIntent
	pageMissed
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// MapFile is what regions.map is written through.
type MapFile interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes what was written durable.
	Sync() error
	Close() error
}

// regionFile is an open regions.map. Its methods are called one at a time. After
// an error nothing is known of the file's content.
type regionFile struct {
	f       MapFile
	uid     volume.UID
	count   int // regions
	intent  *bitmap.Set
	missed  [maxMissed]*bitmap.Set
	names   [maxMissed]string
	blind   bool
	written map[int64]uint64 // sequence numbers by page
}

// regionState is what a regions.map says.
type regionState struct {
	intent *bitmap.Set
	missed map[string]*bitmap.Set
	blind  bool
}

func (r *regionFile) close() error { return r.f.Close() }

func groups(count int) int { return (count + regionsPerPage - 1) / regionsPerPage }

func intentPage(group int) int64           { return 1 + int64(group)*(1+maxMissed) }
func missedPage(group int, slot int) int64 { return intentPage(group) + 1 + int64(slot) }

// load reads the file, and rewrites what can't be trusted as all set.
func (r *regionFile) load(count int) (regionState, error) {
	r.count, r.written, r.intent = count, map[int64]uint64{}, bitmap.New(count)
	body, err := r.readPage(0, pageDirectory)
	if err != nil {
		return regionState{}, err
	}
	known := r.parseDirectory(body)
	if !known {
		r.blind, r.names = true, [maxMissed]string{}
	}
	damaged, err := r.loadBits()
	if err != nil {
		return regionState{}, err
	}
	if damaged || !known {
		if err := r.putAll(); err != nil {
			return regionState{}, err
		}
	}
	s := regionState{intent: r.intent.Clone(), missed: map[string]*bitmap.Set{}, blind: r.blind}
	for slot, name := range r.names {
		if name != "" {
			s.missed[name] = r.missed[slot].Clone()
		}
	}
	return s, nil
}

// loadBits reads all bits; whether a page was damaged.
func (r *regionFile) loadBits() (damaged bool, err error) {
	damaged, err = r.loadSet(r.intent, intentPage, pageIntent)
	if err != nil {
		return false, err
	}
	for slot, name := range r.names {
		if name == "" {
			continue
		}
		r.missed[slot] = bitmap.New(r.count)
		bad, err := r.loadSet(r.missed[slot], func(g int) int64 { return missedPage(g, slot) }, pageMissed)
		if err != nil {
			return false, err
		}
		damaged = damaged || bad
	}
	return damaged, nil
}

// loadSet reads one set; whether a page of it was damaged.
func (r *regionFile) loadSet(set *bitmap.Set, page func(group int) int64, kind uint16) (damaged bool, err error) {
	for g := range groups(r.count) {
		body, err := r.readPage(page(g), kind)
		if err != nil {
			return false, err
		}
		if body == nil {
			damaged = true
			set.AddRange(g*regionsPerPage, (g+1)*regionsPerPage)
			continue
		}
		set.OrBytes(g*regionsPerPage, body)
	}
	return damaged, nil
}

// parseDirectory reads page 0; false when it says nothing that can be trusted.
func (r *regionFile) parseDirectory(body []byte) bool {
	if body == nil {
		return false
	}
	r.blind = body[0] != 0
	seen := map[string]bool{}
	for slot := range r.names {
		p := body[1+slot*nameBytes:]
		name := string(p[1 : 1+int(p[0])])
		if name != "" && seen[name] {
			return false
		}
		seen[name] = true
		r.names[slot] = name
	}
	return true
}

func (r *regionFile) putDirectory() error {
	body := make([]byte, pageContent)
	if r.blind {
		body[0] = 1
	}
	for slot, name := range r.names {
		p := body[1+slot*nameBytes:]
		p[0] = byte(len(name))
		copy(p[1:nameBytes], name)
	}
	return r.writePage(0, pageDirectory, body)
}

// readPage returns a page's content; nil if it can't be trusted.
func (r *regionFile) readPage(page int64, kind uint16) ([]byte, error) {
	p := make([]byte, pageBytes)
	n, err := r.f.ReadAt(p, page*pageBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", regionsFile, err)
	}
	if n < pageBytes || crc32.Checksum(p[:pageBytes-4], crcTable) != binary.LittleEndian.Uint32(p[pageBytes-4:]) {
		return nil, nil
	}
	want := make([]byte, pageHeader)
	seq := binary.LittleEndian.Uint64(p[16:])
	r.header(want, page, kind, seq)
	if !bytes.Equal(p[:pageHeader], want) {
		return nil, nil
	}
	r.written[page] = seq
	return p[pageHeader : pageBytes-4], nil
}

func (r *regionFile) header(p []byte, page int64, kind uint16, seq uint64) {
	copy(p, "HFRM")
	binary.LittleEndian.PutUint16(p[4:], regionsFormat)
	binary.LittleEndian.PutUint16(p[6:], kind)
	binary.LittleEndian.PutUint64(p[8:], uint64(page))
	binary.LittleEndian.PutUint64(p[16:], seq)
	copy(p[24:60], r.uid)
}

// writePage overwrites a page; it is durable after the next Sync.
func (r *regionFile) writePage(page int64, kind uint16, body []byte) error {
	p := make([]byte, pageBytes)
	r.written[page]++
	r.header(p, page, kind, r.written[page])
	copy(p[pageHeader:pageBytes-4], body)
	binary.LittleEndian.PutUint32(p[pageBytes-4:], crc32.Checksum(p[:pageBytes-4], crcTable))
	if _, err := r.f.WriteAt(p, page*pageBytes); err != nil {
		return fmt.Errorf("write %s: %w", regionsFile, err)
	}
	return nil
}

func (r *regionFile) sync() error {
	if mutant.On("map-unsynced") {
		return nil
	}
	if err := r.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", regionsFile, err)
	}
	return nil
}

// writeGroup writes one group's page of a set.
func (r *regionFile) writeGroup(set *bitmap.Set, group int, page int64, kind uint16) error {
	body := make([]byte, pageContent)
	if b := set.Bytes(); group*pageContent < len(b) {
		copy(body, b[group*pageContent:])
	}
	return r.writePage(page, kind, body)
}

// putAll writes everything, durably. A directory that is written before what it
// names finds pages that can't be trusted there.
func (r *regionFile) putAll() error {
	if err := r.putDirectory(); err != nil {
		return err
	}
	for g := range groups(r.count) {
		if err := r.putGroup(g); err != nil {
			return err
		}
	}
	return r.sync()
}

func (r *regionFile) putGroup(g int) error {
	if err := r.writeGroup(r.intent, g, intentPage(g), pageIntent); err != nil {
		return err
	}
	for slot, name := range r.names {
		set := r.missed[slot]
		if name == "" { // a page must be there when the slot is used
			set = bitmap.New(0)
		}
		if err := r.writeGroup(set, g, missedPage(g, slot), pageMissed); err != nil {
			return err
		}
	}
	return nil
}

// addIntent sets bits, durably.
func (r *regionFile) addIntent(bits *bitmap.Set) error {
	if mutant.On("intent-unwritten") {
		return nil
	}
	r.intent.Or(bits)
	return r.putIntent(bits)
}

// clearIntent clears bits, durably.
func (r *regionFile) clearIntent(bits *bitmap.Set) error {
	r.intent.AndNot(bits)
	return r.putIntent(bits)
}

// putIntent writes the pages that have these bits.
func (r *regionFile) putIntent(bits *bitmap.Set) error {
	for i := bits.Next(0); i < bits.Len(); {
		g := i / regionsPerPage
		if err := r.writeGroup(r.intent, g, intentPage(g), pageIntent); err != nil {
			return err
		}
		i = bits.Next((g + 1) * regionsPerPage)
	}
	return r.sync()
}

// putMissed replaces what others missed, durably. What a name had may be lost only
// when the directory does not list it any more, and is complete before it does.
func (r *regionFile) putMissed(missed map[string]*bitmap.Set, blind bool) error {
	for slot, name := range r.names {
		if _, stays := missed[name]; name != "" && !stays {
			r.names[slot] = ""
		}
	}
	added := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(missed)) {
		if len(name) == 0 || len(name) >= nameBytes {
			return fmt.Errorf("name %q of a replica: %w", name, volume.ErrInvalid)
		}
		if r.slot(name) < 0 {
			r.names[r.slot("")] = name
			added[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missed)) {
		set := missed[name]
		slot := r.slot(name)
		for g := range groups(r.count) {
			if !added[name] && sameGroup(r.missed[slot], set, g) {
				continue
			}
			if err := r.writeGroup(set, g, missedPage(g, slot), pageMissed); err != nil {
				return err
			}
		}
		r.missed[slot] = set.Clone()
	}
	if mutant.On("missed-unwritten") {
		return nil
	}
	if err := r.sync(); err != nil { // before the directory names them
		return err
	}
	r.blind = blind
	return errors.Join(r.putDirectory(), r.sync())
}

func sameGroup(a, b *bitmap.Set, g int) bool {
	x, y := a.Bytes(), b.Bytes()
	from, to := min(g*pageContent, len(x)), min((g+1)*pageContent, len(x))
	return bytes.Equal(x[from:to], y[from:to])
}

// slot is where a name stands in the directory, or -1.
func (r *regionFile) slot(name string) int {
	for slot, n := range r.names {
		if n == name {
			return slot
		}
	}
	return -1
}

// grow adds pages for more regions, without bits.
func (r *regionFile) grow(count int) error {
	larger := func(old *bitmap.Set) *bitmap.Set {
		s := bitmap.New(count)
		s.Or(old)
		return s
	}
	first := groups(r.count)
	r.intent = larger(r.intent)
	for slot := range r.missed {
		r.missed[slot] = larger(r.missed[slot])
	}
	for g := first; g < groups(count); g++ {
		if err := r.putGroup(g); err != nil {
			return err
		}
	}
	if err := r.sync(); err != nil {
		return err
	}
	r.count = count
	return nil
}

// openRegionFile opens a replica's regions.map, and makes an empty one, whose
// pages count as set, if there is none.
func openRegionFile(path string) (MapFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return dataFile{f}, nil
}

// dataFile is a file whose Sync leaves times alone: pages are overwritten in
// place, so nothing else has to become durable.
type dataFile struct{ *os.File }

// Sync implements MapFile.
func (f dataFile) Sync() error { return fdatasync(int(f.Fd())) }

// fresh is a file in memory, before there is any.
type fresh struct{ content []byte }

// ReadAt implements MapFile.
func (f *fresh) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// WriteAt implements MapFile.
func (f *fresh) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(f.content) {
		f.content = append(f.content, make([]byte, end-len(f.content))...)
	}
	return copy(f.content[off:], p), nil
}

// Sync implements MapFile.
func (f *fresh) Sync() error { return nil }

// Close implements MapFile.
func (f *fresh) Close() error { return nil }

// makeRegionFile writes the regions.map of a new replica: no bit is set.
func makeRegionFile(fs pool.FS, path string, uid volume.UID, count int) error {
	var content fresh
	if err := makeRegions(&content, uid, count); err != nil {
		return err
	}
	f, err := fs.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content.content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// makeRegions writes the regions.map of a new replica: no bit is set.
func makeRegions(f MapFile, uid volume.UID, count int) error {
	r := &regionFile{f: f, uid: uid, count: count, written: map[int64]uint64{}}
	r.intent = bitmap.New(r.count)
	return r.putAll()
}
