//go:build nobitmap

package replica

// intentBits: without them replicas that differ after a crash are never found.
const intentBits = false
