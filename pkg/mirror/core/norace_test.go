//go:build !race

package core

const (
	defaultSeeds  = 6000
	defaultFaults = 2
	// quickLimit: settings of at most so many states are explored in every run.
	quickLimit = 200_000
)
