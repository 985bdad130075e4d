// Package mutant names deliberate breakages of the product, with which the proof
// is proven: `make mutants` builds with the tag "mutants", breaks one rule at a
// time, and demands that the explorer or the simulator finds it. A rule that
// nobody misses when it is broken is not tested.
//
// A breakage is one condition in the production code:
//
//	if need&^done == 0 || mutant.On("ack-before-store") {
//
// Without the tag On is a constant false, and the compiler removes it. All names
// stand in the table of test/proof.
package mutant
