package main

import (
	"errors"
	"flag"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func parse(t *testing.T, args ...string) (*Options, error) {
	t.Helper()
	var o Options
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return &o, o.Validate()
}

func good() []string {
	return []string{"--node-id=n1", "--store=127.0.0.1:2379", "--csi-socket=/run/csi.sock"}
}

func TestOptions(t *testing.T) {
	o, err := parse(t, append(good(), "--pool=name=a,dir=/srv/a", "--pool=name=b,image=/srv/b.img,size=8Gi,mount=/srv/b,reserve=64Mi,overprovision=1.5", "--topology=zone=z1", "--resync-limit=100Mi")...)
	if err != nil {
		t.Fatal(err)
	}
	want := poolFlag{name: "b", image: "/srv/b.img", mount: "/srv/b", size: 8 << 30, reserve: 64 << 20, overProvision: 1.5}
	if len(o.Pools) != 2 || o.Pools[1] != want || o.Topology["zone"] != "z1" || o.AgentAddr != o.AgentListen || o.resyncLimit != 100<<20 {
		t.Errorf("got %+v", o)
	}
}

func TestOptionsReportAllFaults(t *testing.T) {
	_, err := parse(t, "--node-id=N!", "--lease=1ms", "--agent-listen=nowhere", "--log-level=loud", "--max-volumes=0", "--resync-volumes=0", "--resync-limit=1Ki")
	if !errors.Is(err, volume.ErrInvalid) {
		t.Fatalf("got %v, want ErrInvalid", err)
	}
	for _, field := range []string{"node_id", "--store", "--csi-socket", "--lease", "--agent-listen", "--log-level", "--max-volumes", "--resync-volumes", "--resync-limit"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("the error does not name %s: %v", field, err)
		}
	}
}

func TestPoolFlagRefuses(t *testing.T) {
	for _, s := range []string{
		"", "dir=/a", "name=a", "name=a,dir=/a,image=/b", "name=a,image=/b,size=1Gi", "name=a,image=/b,mount=/c", "name=a,dir=/a,colour=red",
		"name=a,image=/b,size=-1,mount=/c", "name=a,image=/b,size=1Zi,mount=/c", "name=a,image=/b,size=9999999999Ti,mount=/c", "name=a,dir=/a,overprovision=x",
		"name=a,name=b,dir=/a", "name=a,dir=/a,size=1Gi", "name=a,dir=/a,mount=", "name=a,dir=a", "name=a,dir=/a/../b", "name=A,dir=/a",
		"name=a,dir=/a,overprovision=NaN", "name=a,dir=/a,overprovision=0.5", "name=a,image=/b,size=1Mi,mount=/c", "name=a,image=b,size=1Gi,mount=/c",
	} {
		var p poolFlags
		if err := p.Set(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

// FuzzPoolFlag: what is accepted is one pool that package pool can use; what is
// refused leaves nothing.
func FuzzPoolFlag(f *testing.F) {
	for _, s := range []string{
		"name=a,dir=/srv/a", "name=b,image=/srv/b.img,size=8Gi,mount=/srv/b,reserve=64Mi,overprovision=1.5", "dir=/a", "name=a,dir=/a,image=/b",
		"", ",", "=", "name", "name=a,dir=/a=b", "name=a,dir=/a,overprovision=NaN", "name=a,dir=/a,overprovision=1e400", "name=a,dir=/a,reserve=0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var p poolFlags
		if err := p.Set(s); err != nil {
			if len(p) != 0 {
				t.Errorf("%q is refused (%v), and kept", s, err)
			}
			return
		}
		if len(p) != 1 {
			t.Fatalf("%q gives %d pools", s, len(p))
		}
		got := p[0]
		switch {
		case (got.dir == "") == (got.image == ""), (got.image == "") != (got.mount == ""), (got.image == "") != (got.size == 0):
			t.Errorf("%q gives neither a directory nor an image: %+v", s, got)
		case got.validate() != nil, !filepath.IsAbs(got.path()), got.image != "" && !filepath.IsAbs(got.image):
			t.Errorf("%q gives a pool that can't be used: %+v", s, got)
		case got.size < 0, got.reserve < 0, got.overProvision != 0 && !(got.overProvision >= 1 && got.overProvision <= 1000):
			t.Errorf("%q gives numbers that can't be: %+v", s, got)
		}
	})
}
