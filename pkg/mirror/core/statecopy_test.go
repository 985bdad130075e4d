package core

import (
	"reflect"
	"unsafe"
)

// A copier makes a deep copy of a whole world, machines included, that shares
// nothing with the first but what is named in keep. It works by reflection,
// compiled once for each type, so a new field of the Machine can't be forgotten.
//
// Op is the one type that is pointed to in the middle of another (opModel.op);
// its User leads back to the whole.
type copier struct {
	done map[unsafe.Pointer]unsafe.Pointer
}

var theCopier = copier{done: map[unsafe.Pointer]unsafe.Pointer{}}

type copyFunc func(c *copier, dst, src unsafe.Pointer)

var copyFuncs = map[reflect.Type]*copyFunc{}

// copyOf copies what p points to; what is in keep stays shared.
func copyOf[T any](p *T, keep ...unsafe.Pointer) *T {
	c := &theCopier // its map is made once: copies are made by the million, by one goroutine
	clear(c.done)
	for _, k := range keep {
		c.done[k] = k
	}
	return (*T)(c.pointer(reflect.TypeFor[T](), unsafe.Pointer(p)))
}

var (
	opType      = reflect.TypeFor[Op]()
	opModelType = reflect.TypeFor[opModel]()
)

// pointer copies a value of type t and returns where.
func (c *copier) pointer(t reflect.Type, src unsafe.Pointer) unsafe.Pointer {
	if src == nil {
		return nil
	}
	if t == opType {
		if whole, ok := (*Op)(src).User.(*opModel); ok {
			return unsafe.Pointer(&(*opModel)(c.pointer(opModelType, unsafe.Pointer(whole))).op)
		}
	}
	if dst := c.done[src]; dst != nil {
		return dst
	}
	dst := reflect.New(t).UnsafePointer()
	c.done[src] = dst
	(*copyFuncFor(t))(c, dst, src)
	return dst
}

func copyFuncFor(t reflect.Type) *copyFunc {
	if f := copyFuncs[t]; f != nil {
		return f
	}
	f := new(copyFunc)
	copyFuncs[t] = f // before its parts, which may lead back to it
	*f = makeCopyFunc(t)
	return f
}

func makeCopyFunc(t reflect.Type) copyFunc {
	if !hasPointers(t) {
		n := t.Size()
		return func(_ *copier, dst, src unsafe.Pointer) {
			copy(unsafe.Slice((*byte)(dst), n), unsafe.Slice((*byte)(src), n))
		}
	}
	switch t.Kind() {
	case reflect.String:
		return func(_ *copier, dst, src unsafe.Pointer) { *(*string)(dst) = *(*string)(src) }
	case reflect.Func: // shared
		return func(_ *copier, dst, src unsafe.Pointer) { *(*unsafe.Pointer)(dst) = *(*unsafe.Pointer)(src) }
	case reflect.Pointer:
		elem := t.Elem()
		return func(c *copier, dst, src unsafe.Pointer) {
			*(*unsafe.Pointer)(dst) = c.pointer(elem, *(*unsafe.Pointer)(src))
		}
	case reflect.Struct, reflect.Array:
		return copyParts(t)
	case reflect.Slice:
		return copySlice(t)
	case reflect.Map:
		return copyMap(t)
	case reflect.Interface:
		return copyInterface(t)
	}
	panic("a state holds a " + t.String())
}

func copyParts(t reflect.Type) copyFunc {
	type part struct {
		at uintptr
		f  *copyFunc
	}
	var parts []part
	if t.Kind() == reflect.Array {
		for i := range t.Len() {
			parts = append(parts, part{uintptr(i) * t.Elem().Size(), copyFuncFor(t.Elem())})
		}
	} else {
		for i := range t.NumField() {
			parts = append(parts, part{t.Field(i).Offset, copyFuncFor(t.Field(i).Type)})
		}
	}
	return func(c *copier, dst, src unsafe.Pointer) {
		for _, p := range parts {
			(*p.f)(c, unsafe.Add(dst, p.at), unsafe.Add(src, p.at))
		}
	}
}

func copySlice(t reflect.Type) copyFunc {
	elem, size := copyFuncFor(t.Elem()), t.Elem().Size()
	return func(c *copier, dst, src unsafe.Pointer) {
		from := reflect.NewAt(t, src).Elem()
		if from.IsNil() {
			return
		}
		n := from.Len()
		to := reflect.MakeSlice(t, n, n)
		for i := range n {
			at := uintptr(i) * size
			(*elem)(c, unsafe.Add(to.UnsafePointer(), at), unsafe.Add(from.UnsafePointer(), at))
		}
		reflect.NewAt(t, dst).Elem().Set(to)
	}
}

func copyMap(t reflect.Type) copyFunc {
	if hasPointers(t.Key()) {
		panic("a state's map has pointers in its key")
	}
	elem := copyFuncFor(t.Elem())
	return func(c *copier, dst, src unsafe.Pointer) {
		from := reflect.NewAt(t, src).Elem()
		if from.IsNil() {
			return
		}
		to := reflect.MakeMapWithSize(t, from.Len())
		for it := from.MapRange(); it.Next(); {
			old, val := reflect.New(t.Elem()), reflect.New(t.Elem())
			old.Elem().Set(it.Value())
			(*elem)(c, val.UnsafePointer(), old.UnsafePointer())
			to.SetMapIndex(it.Key(), val.Elem())
		}
		reflect.NewAt(t, dst).Elem().Set(to)
	}
}

// copyInterface copies what an interface's pointer points to.
func copyInterface(t reflect.Type) copyFunc {
	return func(c *copier, dst, src unsafe.Pointer) {
		from := reflect.NewAt(t, src).Elem()
		if from.IsNil() {
			return
		}
		inner := from.Elem()
		if inner.Kind() == reflect.Pointer {
			p := c.pointer(inner.Type().Elem(), inner.UnsafePointer())
			inner = reflect.NewAt(inner.Type().Elem(), p)
		} else if hasPointers(inner.Type()) {
			panic("a state's interface holds a " + inner.Type().String())
		}
		reflect.NewAt(t, dst).Elem().Set(inner)
	}
}

func hasPointers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return false
	case reflect.Array:
		return hasPointers(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if hasPointers(t.Field(i).Type) {
				return true
			}
		}
		return false
	}
	return true
}
