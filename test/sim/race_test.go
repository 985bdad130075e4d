//go:build race

package sim

// The race detector finds nothing in one goroutine.
const defaultSeeds = 100
