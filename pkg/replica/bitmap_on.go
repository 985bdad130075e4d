//go:build !nobitmap

package replica

// intentBits: changes set intent bits. Always; the build tag nobitmap exists so
// that `make bench` can measure what they cost, and for nothing else.
const intentBits = true
