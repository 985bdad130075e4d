package block

// Batcher is a Device that carries out several requests given at once for less
// than one by one: a connection sends them with one system call.
type Batcher interface {
	Device
	// SubmitBatch is Submit for each of ios. The slice is the caller's again when
	// it returns; its elements may have changed places.
	SubmitBatch(ios []*IO)
}

// SubmitAll submits ios, together if the device is a Batcher; see SubmitBatch
// about the slice.
func SubmitAll(d Device, ios []*IO) {
	if b, ok := d.(Batcher); ok && len(ios) > 1 {
		b.SubmitBatch(ios)
		return
	}
	for _, io := range ios {
		d.Submit(io)
	}
}
