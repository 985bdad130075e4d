//go:build !race

package core

const (
	defaultSeeds  = 6000
	defaultFaults = 2
)
