// Package placement decides on which pools a volume's replicas go, and how much
// more the pools can take. It is arithmetic over the objects of the store: no
// clock, no random number, no goroutine, no I/O, and the same input gives the
// same answer. docs/placement.md explains the rules with an example.
//
// What must be prevented: two replicas of a volume failing together, because
// they share a node or a domain that they were to differ in; and a pool that
// promises more than its limit, or guarantees more than it has. Why the rules
// are enough: every candidate that breaks one is refused before anything is
// ranked, so ranking can only choose among safe ones. What the package can't
// prevent is two controllers planning at once from the same picture, or a
// picture that is some seconds old: the pool itself checks every creation
// again and has the last word.
//
// Sizes are in bytes everywhere.
package placement
