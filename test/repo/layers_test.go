// Package repo holds the repository to its own rules: the direction of imports,
// the purity of the state machine, and links in the documents.
package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/holdfast-csi/holdfast/"
)

// layers are the product's packages from the top down. A package may import
// those in the layers below its own, and none of its own layer. A package that is
// not here fails the test: put it where it belongs.
var layers = [][]string{
	{"cmd/holdfast-controller", "cmd/holdfast-node", "cmd/holdfast-standalone", "cmd/kubectl-holdfast"},
	{"pkg/standalone"},
	{"pkg/csi/node"},
	{"pkg/csi"},
	{"pkg/admin"},
	{"pkg/controller"},
	{"pkg/attach", "pkg/node"},
	{"pkg/agent", "pkg/agent/service"},
	{"pkg/agent/agentpb", "pkg/rpcerr"},
	{"pkg/mirror", "pkg/export", "pkg/placement", "pkg/host", "pkg/store/etcd", "pkg/store/memory", "pkg/store/storetest"},
	{"pkg/mirror/core", "pkg/pace", "pkg/store/internal/record", "pkg/store/internal/feed"},
	{"pkg/store"},
	{"pkg/replica"},
	{"pkg/pool/pooltest"},
	{"pkg/pool", "pkg/nbd"},
	{"pkg/block/blocktest"},
	{"pkg/block"},
	{"pkg/standalone/left"},
	{"pkg/volume", "pkg/mutant", "pkg/bitmap"},
}

// linksNot are pairs "what: what it must not contain", directly or not.
var linksNot = []struct{ pkg, banned, why string }{
	{"cmd/holdfast-controller", "pkg/attach", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/agent/service", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/mirror", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/export", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/replica", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/pool", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/nbd", "the controller holds no data path"},
	{"cmd/holdfast-controller", "pkg/block", "the controller holds no data path"},
	{"cmd/kubectl-holdfast", "pkg/attach", "an administrator's command touches no data"},
	{"cmd/kubectl-holdfast", "pkg/mirror", "an administrator's command touches no data"},
	{"pkg/mirror", "pkg/store", "the mirror's user swaps the store's objects for it"},
	{"pkg/attach", "github.com/container-storage-interface", "the data path knows no CSI"},
	{"pkg/attach", "k8s.io", "volumes serve I/O without Kubernetes"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// packages lists the product's packages as the go command sees them.
func packages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", "./cmd/...", "./pkg/...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	all := map[string]goPackage{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

func TestImportsRunDownward(t *testing.T) {
	level := map[string]int{}
	for i, l := range layers {
		for _, p := range l {
			level[p] = i
		}
	}
	all := packages(t)
	for name, p := range all {
		at, known := level[name]
		if !known {
			t.Errorf("%s is in no layer", name)
			continue
		}
		for _, imported := range p.Imports {
			short, ours := strings.CutPrefix(imported, module)
			if below, known := level[short]; ours && known && below <= at {
				t.Errorf("%s imports %s, which is not below it", name, short)
			}
		}
	}
	for name := range level {
		if _, exists := all[name]; !exists {
			t.Errorf("layer %d lists %s, which does not exist", level[name], name)
		}
	}
}

func TestWhatIsNotLinked(t *testing.T) {
	all := packages(t)
	for _, rule := range linksNot {
		for _, name := range []string{rule.pkg, rule.banned} {
			if _, exists := all[name]; !exists && !strings.Contains(name, ".") {
				t.Errorf("a rule names %s, which does not exist", name)
			}
		}
		for _, dep := range all[rule.pkg].Deps {
			short := strings.TrimPrefix(dep, module)
			if short == rule.banned || strings.HasPrefix(short, rule.banned+"/") {
				t.Errorf("%s contains %s: %s", rule.pkg, short, rule.why)
				break
			}
		}
	}
}

// TestStateMachineIsPure: nothing in the state machine runs at the same time as
// something else. What it may import is a rule of the linter.
func TestStateMachineIsPure(t *testing.T) {
	for _, dir := range []string{"pkg/mirror/core", "pkg/bitmap", "pkg/placement", "pkg/volume"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no files: %v", dir, err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				for _, found := range concurrency(t, file) {
					t.Errorf("%s", found)
				}
			}
		}
	}
}

// concurrency lists the goroutines, channels and selects of a file.
func concurrency(t *testing.T, file string) []string {
	t.Helper()
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	ast.Inspect(tree, func(n ast.Node) bool {
		what := ""
		switch n.(type) {
		case *ast.GoStmt:
			what = "a goroutine"
		case *ast.ChanType:
			what = "a channel"
		case *ast.SelectStmt:
			what = "a select"
		case *ast.SendStmt:
			what = "a send"
		}
		if what != "" {
			found = append(found, fmt.Sprintf("%s: %s in a package that is pure", fset.Position(n.Pos()), what))
		}
		return true
	})
	return found
}

// TestConcurrencyIsFound keeps the check above honest.
func TestConcurrencyIsFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.go")
	if err := os.WriteFile(file, []byte("package a\nfunc f() { c := make(chan int); go f(); select { case c <- 1: } }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	found := strings.Join(concurrency(t, file), "\n")
	for _, want := range []string{"a goroutine", "a channel", "a select", "a send"} {
		if !strings.Contains(found, want) {
			t.Errorf("%s was not found in:\n%s", want, found)
		}
	}
}

// TestNoVagueNames: a package is named for what it holds.
func TestNoVagueNames(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "misc", "types", "base", "manager"}
	for name := range packages(t) {
		for part := range strings.SplitSeq(name, "/") {
			if slices.Contains(vague, part) {
				t.Errorf("%s: the name %q says nothing", name, part)
			}
		}
	}
}
