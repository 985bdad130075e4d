//go:build mutants

package mutant

import "os"

var chosen = os.Getenv("MUTANT")

// On says whether this breakage is asked for.
func On(name string) bool { return chosen == name }
