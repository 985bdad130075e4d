package core

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"reflect"
	"slices"
	"unsafe"
)

// longLease is longer than all ticks that pass in one history.
const longLease = 1 << 20

// An encoder writes a world down so that two worlds with the same future give
// the same bytes. By default every field is written as it is, and a pointer by
// the order in which it was met, so that a field that nobody thought of makes
// more states, never fewer. The exceptions stand in encodings.
type encoder struct {
	buf   []byte
	seen  map[unsafe.Pointer]uint64
	now   int64    // of the machine that is written
	time  int64    // of all clocks
	asked []int64  // what the machine's legs have proven, and when its requests came, ascending
	seqs  []uint64 // the machine's orders of submission, ascending
	marks []uint64 // numbers of the machines' questions to replicas, ascending
	ids   []int    // numbers of operations that anything still knows, ascending
	store *storeModel
}

type encodeFunc func(e *encoder, p unsafe.Pointer)

var encodeFuncs = map[reflect.Type]*encodeFunc{}

// encodings are the fields that are not written as they are, by type and name.
var encodings map[string]encodeFunc

func init() {
	skip := func(*encoder, unsafe.Pointer) {}
	age := func(e *encoder, p unsafe.Pointer) { e.int(e.now - *(*int64)(p)) }
	due := func(e *encoder, p unsafe.Pointer) { e.int(max(0, *(*int64)(p)-e.now)) }
	// Only leaseEnds passes so much time that a lease ends.
	// Besides, proofs and the arrivals of reads are compared with each other.
	proof := func(e *encoder, p unsafe.Pointer) {
		at := *(*int64)(p)
		rank, _ := slices.BinarySearch(e.asked, at)
		e.int((e.time - at) / (longLease / 2))
		e.int(int64(rank))
	}
	until := func(e *encoder, p unsafe.Pointer) { e.int(max(0, *(*int64)(p)-e.time) / (longLease / 2)) }
	seq := func(e *encoder, p unsafe.Pointer) {
		i, _ := slices.BinarySearch(e.seqs, *(*uint64)(p))
		e.int(int64(i))
	}
	mark := func(e *encoder, p unsafe.Pointer) {
		i, _ := slices.BinarySearch(e.marks, *(*uint64)(p))
		e.int(int64(i))
	}
	id := func(e *encoder, p unsafe.Pointer) { e.id(*(*int)(p)) }
	ids := func(e *encoder, p unsafe.Pointer) {
		s := *(*[]int)(p)
		e.int(int64(len(s)))
		for _, v := range s {
			e.id(v)
		}
	}
	encodings = map[string]encodeFunc{
		// The past is measured from now on.
		"Machine.now": skip, "Machine.seq": skip, "Machine.clock": skip, "Machine.serveAt": until, "world.time": skip,
		"leg.heard": age, "leg.probed": age, "leg.confirmed": age, "leg.proven": proof, "leg.opened": proof, "leg.reopenAt": due, "leg.provenAt": due, "leg.mark": seq,
		"Op.seq": seq, "Op.sent": age, "Op.asked": proof, "Op.arrived": proof,
		// Numbers of rotations, drops and questions are only compared, and each one is
		// newer than all before it.
		"cycle.seq": mark, "question.seq": mark, "Action.Seq": mark, "replicaModel.rotation": mark,
		"cycle.mark": seq, "cycle.at": due,
		// For people only.
		"leg.reason": skip, "leg.moved": skip, "Machine.failedFor": skip, "Wants.Reasons": skip, "Taken.Reasons": skip, "leg.broke": func(e *encoder, p unsafe.Pointer) {
			e.int(int64(min(1, len(*(*string)(p)))))
		},
		// Numbers of operations are only compared.
		"world.lastID": skip, "opModel.id": id, "opModel.vals": ids, "message.vals": ids, "register.ids": ids,
		"replicaModel.volatile": ids, "replicaModel.durable": ids,
		"oracle.dropped": func(e *encoder, p unsafe.Pointer) {
			for _, v := range e.ids {
				if (*(*map[int]bool)(p))[v] {
					e.id(v)
				}
			}
			e.int(-1)
		},
		// A version is only compared with the present one.
		"storeModel.version": skip,
		"swapCall.readVersion": func(e *encoder, p unsafe.Pointer) {
			switch v := *(*int)(p); v {
			case 0:
				e.int(0)
			case e.store.version:
				e.int(1)
			default:
				e.int(2)
			}
		},
		"holder.id": skip,
		"world.rng": skip, "world.trace": skip, "world.tell": skip, "world.onAction": skip,
		"message.id": skip,
	}
}

func (e *encoder) int(v int64) { e.buf = binary.AppendVarint(e.buf, v) }

func (e *encoder) id(v int) {
	i, ok := slices.BinarySearch(e.ids, v)
	if !ok {
		i = -1
	}
	e.int(int64(i))
}

// pointer writes what p points to, or its number if it was written before.
func (e *encoder) pointer(t reflect.Type, p unsafe.Pointer) {
	if p == nil {
		e.int(0)
		return
	}
	if n := e.seen[p]; n != 0 {
		e.int(int64(n))
		return
	}
	n := uint64(len(e.seen) + 1)
	e.seen[p] = n
	e.int(-1)
	if t == opType {
		if whole, ok := (*Op)(p).User.(*opModel); ok && e.seen[unsafe.Pointer(whole)] == 0 {
			e.pointer(opModelType, unsafe.Pointer(whole))
			return
		}
	}
	if t == machineType {
		e.machine((*Machine)(p))
	}
	(*encodeFuncFor(t))(e, p)
}

var machineType = reflect.TypeFor[Machine]()

// machine notes what the machine's numbers are measured by.
func (e *encoder) machine(m *Machine) {
	e.now, e.seqs, e.asked = m.now, e.seqs[:0], e.asked[:0]
	for _, ops := range [...][]*Op{m.inflight, m.waiting} {
		for _, op := range ops {
			e.seqs, e.asked = append(e.seqs, op.seq), append(e.asked, op.arrived)
		}
	}
	e.seqs = append(e.seqs, m.cycle.mark)
	for i := range m.legs {
		e.asked = append(e.asked, m.legs[i].proven)
		if m.legs[i].step != stepNone {
			e.seqs = append(e.seqs, m.legs[i].mark)
		}
	}
	slices.Sort(e.asked)
	e.asked = slices.Compact(e.asked)
	slices.Sort(e.seqs)
	e.seqs = slices.Compact(e.seqs)
}

func encodeFuncFor(t reflect.Type) *encodeFunc {
	if f := encodeFuncs[t]; f != nil {
		return f
	}
	f := new(encodeFunc)
	encodeFuncs[t] = f
	*f = makeEncodeFunc(t)
	return f
}

func makeEncodeFunc(t reflect.Type) encodeFunc {
	switch t.Kind() {
	case reflect.Bool, reflect.Uint8, reflect.Int8:
		return func(e *encoder, p unsafe.Pointer) { e.buf = append(e.buf, *(*byte)(p)) }
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return func(e *encoder, p unsafe.Pointer) { e.int(*(*int64)(p)) }
	case reflect.Int32, reflect.Uint32:
		return func(e *encoder, p unsafe.Pointer) { e.int(int64(*(*int32)(p))) }
	case reflect.Uint16:
		return func(e *encoder, p unsafe.Pointer) { e.int(int64(*(*uint16)(p))) }
	case reflect.String:
		return func(e *encoder, p unsafe.Pointer) {
			s := *(*string)(p)
			e.buf = append(binary.AppendVarint(e.buf, int64(len(s))), s...)
		}
	case reflect.Func:
		return func(*encoder, unsafe.Pointer) {}
	case reflect.Pointer:
		elem := t.Elem()
		return func(e *encoder, p unsafe.Pointer) { e.pointer(elem, *(*unsafe.Pointer)(p)) }
	case reflect.Struct, reflect.Array:
		return encodeParts(t)
	case reflect.Slice:
		elem, size := encodeFuncFor(t.Elem()), t.Elem().Size()
		return func(e *encoder, p unsafe.Pointer) {
			s := reflect.NewAt(t, p).Elem()
			e.int(int64(s.Len()))
			for i := range s.Len() {
				(*elem)(e, unsafe.Add(s.UnsafePointer(), uintptr(i)*size))
			}
		}
	case reflect.Interface:
		return func(e *encoder, p unsafe.Pointer) {
			inner := reflect.NewAt(t, p).Elem().Elem()
			switch {
			case !inner.IsValid():
				e.int(0)
			case inner.Kind() == reflect.Pointer:
				e.pointer(inner.Type().Elem(), inner.UnsafePointer())
			default:
				panic("a state's interface holds a " + inner.Type().String())
			}
		}
	case reflect.Map:
		return encodeMap(t)
	}
	panic("a state holds a " + t.String())
}

func encodeParts(t reflect.Type) encodeFunc {
	type part struct {
		at uintptr
		f  *encodeFunc
	}
	var parts []part
	if t.Kind() == reflect.Array {
		for i := range t.Len() {
			parts = append(parts, part{uintptr(i) * t.Elem().Size(), encodeFuncFor(t.Elem())})
		}
	} else {
		for i := range t.NumField() {
			f := t.Field(i)
			if special, ok := encodings[t.Name()+"."+f.Name]; ok {
				parts = append(parts, part{f.Offset, &special})
				continue
			}
			parts = append(parts, part{f.Offset, encodeFuncFor(f.Type)})
		}
	}
	return func(e *encoder, p unsafe.Pointer) {
		for _, q := range parts {
			(*q.f)(e, unsafe.Add(p, q.at))
		}
	}
}

// encodeMap writes a map in the order of its keys' bytes.
func encodeMap(t reflect.Type) encodeFunc {
	key, elem := encodeFuncFor(t.Key()), encodeFuncFor(t.Elem())
	type entry struct {
		key []byte
		val reflect.Value
	}
	return func(e *encoder, p unsafe.Pointer) {
		m := reflect.NewAt(t, p).Elem()
		entries := make([]entry, 0, m.Len())
		buf := e.buf
		for it := m.MapRange(); it.Next(); {
			k, v := reflect.New(t.Key()), reflect.New(t.Elem())
			k.Elem().Set(it.Key())
			v.Elem().Set(it.Value())
			e.buf = nil
			(*key)(e, k.UnsafePointer())
			entries = append(entries, entry{e.buf, v})
		}
		e.buf = buf
		slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(string(a.key), string(b.key)) })
		e.int(int64(len(entries)))
		for _, x := range entries {
			e.buf = append(e.buf, x.key...)
			(*elem)(e, x.val.UnsafePointer())
		}
	}
}

// digest is a 64-bit hash of what was written. Two of ten million states share
// one by a chance of 1 in 370,000.
func digest(b []byte) uint64 {
	h := uint64(0x9e3779b97f4a7c15) ^ uint64(len(b))
	mix := func(x uint64) {
		hi, lo := bits.Mul64(x^h, 0xd6e8feb86659fd93)
		h = bits.RotateLeft64(hi^lo, 29) + 0xa0761d6478bd642f*x
	}
	for ; len(b) >= 8; b = b[8:] {
		mix(binary.LittleEndian.Uint64(b))
	}
	var last [8]byte
	copy(last[:], b)
	mix(binary.LittleEndian.Uint64(last[:]))
	h ^= h >> 32
	h *= 0xff51afd7ed558ccd
	h ^= h >> 29
	return max(h, 1)
}
