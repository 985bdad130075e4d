// Package admin is what an administrator asks of a Holdfast, and does to it, by
// hand: the kubectl-holdfast command is a thin layer over it.
//
// It reads the store and asks the nodes' agents. What it changes it changes in
// the store alone, by compare-and-swap, as the controller does: the controllers
// and nodes see it and follow. So nothing is half-done when the command is
// interrupted.
//
// Concurrency: an Admin is safe for concurrent use and keeps no state.
package admin
