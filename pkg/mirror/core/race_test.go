//go:build race

package core

// The race detector slows the worlds down tenfold and finds nothing in them:
// they have one goroutine.
const (
	defaultSeeds  = 800
	defaultFaults = 1
	quickLimit    = 0
)
