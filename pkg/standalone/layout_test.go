package standalone

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func goodOptions(dir string) Options {
	return Options{Dir: dir, Nodes: 3, PoolSize: 1 << 30}
}

func TestOptionsValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Options)
		field  string // named in the error; "" when it is allowed
	}{
		{"good", func(*Options) {}, ""},
		{"one node", func(o *Options) { o.Nodes = 1 }, ""},
		{"relative directory", func(o *Options) { o.Dir = "here" }, "--dir"},
		{"no directory", func(o *Options) { o.Dir = "" }, "--dir"},
		{"the root directory", func(o *Options) { o.Dir = "/" }, "--dir"},
		{"a directory that climbs", func(o *Options) { o.Dir = "/tmp/../etc" }, "--dir"},
		{"a path too long for a socket", func(o *Options) { o.Dir = "/" + strings.Repeat("a", 90) }, "--dir"},
		{"a comma, which separates a pool's options", func(o *Options) { o.Dir = "/a,b" }, "--dir"},
		{"no node", func(o *Options) { o.Nodes = 0 }, "--nodes"},
		{"too many nodes", func(o *Options) { o.Nodes = 10 }, "--nodes"},
		{"a pool too small for XFS", func(o *Options) { o.PoolSize = 1 << 20 }, "--pool-size"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := goodOptions("/var/lib/x")
			tt.change(&o)
			err := o.Validate()
			switch {
			case tt.field == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.field != "" && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), tt.field)):
				t.Errorf("got %v, want ErrInvalid that names %s", err, tt.field)
			}
		})
	}
	o := Options{}
	err := o.Validate()
	for _, field := range []string{"--dir", "--nodes", "--pool-size"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("not all faults are reported: %v lacks %s", err, field)
		}
	}
}

func TestLayoutIsKept(t *testing.T) {
	o := goodOptions(t.TempDir())
	first, err := layout(o)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"store", "controller", "n1", "n2", "n3"}; !slices.Equal(first.Processes, want) {
		t.Errorf("processes are %v, want %v", first.Processes, want)
	}
	addresses := map[string]bool{first.Store: true}
	for _, n := range first.Nodes {
		addresses[n.Agent], addresses[n.Replica] = true, true
	}
	if len(addresses) != 7 {
		t.Errorf("addresses are not distinct: %+v", first)
	}
	again, err := layout(o)
	if err != nil || again.Store != first.Store || !slices.Equal(again.Nodes, first.Nodes) {
		t.Errorf("a restart gave %+v, %v; want %+v", again, err, first)
	}
	o.Nodes = 2
	if _, err := layout(o); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("another number of nodes: got %v, want ErrPrecondition", err)
	}
}

func TestReadLayoutRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadLayout(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory: got %v, want ErrNotExist", err)
	}
	for _, text := range []string{"", "{", `{"nodes": 3}`, "\x00\x00", "{}", "null", layoutText("../n1", "127.0.0.1:20000"), layoutText("n1", "10.0.0.1:20000")} {
		if err := os.WriteFile(filepath.Join(dir, "standalone.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadLayout(dir); !errors.Is(err, volume.ErrCorrupt) {
			t.Errorf("%q: got %v, want ErrCorrupt", text, err)
		}
		if _, err := layout(goodOptions(dir)); !errors.Is(err, volume.ErrCorrupt) {
			t.Errorf("%q: a new layout was made over it: %v", text, err)
		}
	}
}

func TestFreePortsAreFree(t *testing.T) {
	ports, err := freePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", ports[0])
	if err != nil {
		t.Fatalf("port %s is not free: %v", ports[0], err)
	}
	defer taken.Close()
	others, err := freePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(others, ports[0]) {
		t.Errorf("%s is taken and was given out: %v", ports[0], others)
	}
}

// layoutText is a file with one node.
func layoutText(node, agent string) string {
	return `{"store":"127.0.0.1:20001","nodes":[{"name":"` + node + `","agent":"` + agent + `","replica":"[::1]:20002"}],"processes":["store","controller","` + node + `"]}`
}

// FuzzLayout: what is accepted has names that are safe in paths and addresses
// of this machine, and survives being written again.
func FuzzLayout(f *testing.F) {
	for _, s := range []string{
		layoutText("n1", "127.0.0.1:20000"), layoutText("n2", "127.0.0.1:20000"), layoutText("n1", "127.0.0.1:0"), layoutText("n1", "localhost:1"),
		"", "{}", "null", "[]", `{"nodes":[{}]}`, `{"store":"x","nodes":null,"processes":["../../etc/passwd"]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLayout(b)
		if err != nil {
			if len(l.Nodes)+len(l.Processes)+len(l.Store) != 0 {
				t.Errorf("%q is refused (%v), and gives %+v", b, err, l)
			}
			return
		}
		if len(l.Processes) != len(l.Nodes)+2 {
			t.Errorf("%q gives %+v", b, l)
		}
		for _, name := range l.Processes {
			if !filepath.IsLocal(name) || filepath.Base(name) != name {
				t.Errorf("%q gives process %q", b, name)
			}
		}
		again, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseLayout(again); err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("%+v comes back as %+v, %v", l, back, err)
		}
	})
}
